"""The broker's two sockets: envelopes in, envelopes out, and which session came over which connection.

Sending never blocks. With ROUTER_MANDATORY a full pipe is EAGAIN and a vanished peer EHOSTUNREACH. What a pipe does not
take waits here, in order and bounded. POLLOUT of a ROUTER means only "some peer takes something", so a peer that took
nothing is tried again by the clock: after 5 ms, then twice as long each time, up to 50 ms.

When a connection breaks, libzmq names the file descriptor that was closed and nothing else. Descriptors are used again
at once, so this is only a hint: the session last heard over that descriptor is probed, and the send tells.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..protocol import codec, descriptors, transport
from ..protocol import messages as m
from ..protocol.authorized_keys import Group
from ..protocol.errors import ProtocolError
from .core import SendFailure, Side
from .oversized_messages import OversizedMessages, reset_connection

FIRST_RETRY_S: Final = 0.005
LAST_RETRY_S: Final = 0.05
MAX_HALF_OPEN: Final = 4096
"""Connections of a socket without a session: twice a fleet that comes back at once. Beyond it the oldest is reset: a
stranger's, sooner than that of somebody who has just come."""
MAX_PENDING_BYTES: Final = 16 << 20
"""For one peer, beyond what libzmq holds: twice the default window, so only a peer that reads nothing meets it."""
_MAX_EVENTS: Final = 2000
"""Connections opened or closed that are read at a time; further ones wait, as everything else waits for these."""
_NOBLOCK: Final = int(zmq.NOBLOCK)
_ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
_ACCEPT_FAILED: Final = int(zmq.EVENT_ACCEPT_FAILED)

log = logging.getLogger(__name__)


class Unsent(NamedTuple):
    """Messages that have certainly not left, and why. UNPACKABLE is about those messages alone, else about the peer."""

    peer: bytes
    why: SendFailure
    messages: list[m.Message]


@dataclass
class _Pending:
    """Envelopes that wait for one peer.

    The messages of a split envelope stand with its first part. Once that is sent, nobody can say which of them have
    left, and a request that may have left must not count as unsent: it could run twice.
    """

    retry_at: float
    retry_s: float = FIRST_RETRY_S
    size_bytes: int = 0
    envelopes: deque[tuple[codec.Frames, Sequence[m.Message]]] = field(default_factory=deque[Any])

    def add(self, envelopes: Sequence[codec.Frames], messages: Sequence[m.Message]) -> None:
        for index, frames in enumerate(envelopes):
            self.envelopes.append((frames, messages if index == 0 else ()))
            self.size_bytes += sum(map(len, frames))


class Sender:
    """Sends through one ROUTER, and keeps what it does not take at once."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._pending: dict[bytes, _Pending] = {}
        self.next_retry = math.inf
        """When `retry` is due."""
        self.retries = 0

    def send(self, peer: bytes, messages: Sequence[m.Message], now: float) -> Unsent | None:
        """Send messages in as few envelopes as they need, behind what already waits for that peer."""
        try:
            envelopes = codec.pack(messages)
        except ProtocolError:
            return self._send_packable(peer, messages, now)
        waiting = self._pending.get(peer) if self._pending else None
        if waiting is None:
            for index, frames in enumerate(envelopes):
                failure = self._try(peer, frames)
                unsent = messages if index == 0 else ()
                if failure is SendFailure.UNREACHABLE:
                    return Unsent(peer, failure, list(unsent))
                if failure is not None:
                    waiting = self._pending[peer] = _Pending(now + FIRST_RETRY_S)
                    self.next_retry = min(self.next_retry, waiting.retry_at)
                    envelopes, messages = envelopes[index:], unsent
                    break
            else:
                return None
        waiting.add(envelopes, messages)
        return self._give_up(peer, SendFailure.FULL) if waiting.size_bytes > MAX_PENDING_BYTES else None

    def _send_packable(self, peer: bytes, messages: Sequence[m.Message], now: float) -> Unsent | None:
        """Leave out what cannot be packed: it costs the peer that one message, and nobody else anything."""
        good, bad = codec.split_packable(messages)
        unsent = self.send(peer, good, now) if good else None
        for message, why in bad:
            log.error("a message to %s cannot be sent: %s: %s", peer.hex(), type(message).__name__, why)
        return unsent or Unsent(peer, SendFailure.UNPACKABLE, [message for message, _ in bad])

    def send_once(self, peer: bytes, frames: codec.Frames) -> None:
        """Try once to send something that nobody will miss."""
        self._try(peer, frames)

    def retry(self, now: float) -> list[Unsent]:
        """Try again what is due; return what is given up."""
        given_up: list[Unsent] = []
        for peer, waiting in list(self._pending.items()):
            if waiting.retry_at > now:
                continue
            self.retries += 1
            failure = self._flush(peer, waiting)
            if failure is SendFailure.UNREACHABLE:
                given_up.append(self._give_up(peer, failure))
            elif failure is not None:
                waiting.retry_at = now + waiting.retry_s
                waiting.retry_s = min(2 * waiting.retry_s, LAST_RETRY_S)
            else:
                del self._pending[peer]
        self.next_retry = min((waiting.retry_at for waiting in self._pending.values()), default=math.inf)
        return given_up

    def _flush(self, peer: bytes, waiting: _Pending) -> SendFailure | None:
        while waiting.envelopes:
            frames, _ = waiting.envelopes[0]
            failure = self._try(peer, frames)
            if failure is not None:
                return failure
            waiting.envelopes.popleft()
            waiting.size_bytes -= sum(map(len, frames))
            waiting.retry_s = FIRST_RETRY_S
        return None

    def _give_up(self, peer: bytes, why: SendFailure) -> Unsent:
        waiting = self._pending.pop(peer)
        return Unsent(peer, why, [message for _, messages in waiting.envelopes for message in messages])

    def _try(self, peer: bytes, frames: codec.Frames) -> SendFailure | None:
        try:
            transport.send_routed(self._socket, peer, frames)
        except zmq.Again:
            return SendFailure.FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return SendFailure.UNREACHABLE
        return None


class RouterSocket:
    """The ROUTER of one side, its sender, and the connections behind it."""

    def __init__(self, side: Side, socket: zmq.Socket[bytes], decoder: codec.Codec[Any], *, with_user: bool) -> None:
        self.side = side
        self.group: Group = "workers" if side is Side.WORKERS else "clients"
        self.codec = decoder
        self.sender = Sender(socket)
        self.socket = socket
        self._with_user = with_user
        self._monitor = transport.monitor_connections(socket)
        self._fd_of: dict[bytes, int] = {}
        self._key_of: dict[bytes, str] = {}
        self._peers_of: dict[int, set[bytes]] = {}
        self._oversized = OversizedMessages()
        self._half_open: dict[int, None] = {}
        """Connections that have no session yet, the oldest first."""
        self.half_open_cut = 0
        self.turned_away = 0
        """Connections refused because they had one of the last descriptors, and …"""
        self.starved = 0
        """… how often descriptors were wanting, those included. Both only grow."""

    def descriptors(self) -> tuple[int, int]:
        """Return what an event loop watches: (for envelopes, for connections that come and go)."""
        return transport.descriptor(self.socket), transport.descriptor(self._monitor)

    def has_input(self) -> bool:
        """Say whether an envelope is waiting. Cheaper than a failed receive."""
        return transport.has_input(self.socket)

    def receive(self) -> tuple[bytes, str, int, list[transport.Frame]] | None:
        """Take one envelope: (peer, key it came under, descriptor, frames)."""
        received = transport.receive_routed(self.socket, with_user=self._with_user)
        if received is not None:
            self._oversized.completed.add(received[2])
        return received

    def is_noted(self, peer: bytes, fd: int) -> bool:
        """Whether this session is known to come over this descriptor."""
        return self._fd_of.get(peer) == fd

    def note(self, peer: bytes, fd: int, key: str) -> None:
        """Remember over which descriptor a session comes, and under which key."""
        self._half_open.pop(fd, None)
        self._fd_of[peer] = fd
        if key:
            self._key_of[peer] = key
        self._peers_of.setdefault(fd, set()).add(peer)

    def forget(self, peer: bytes) -> None:
        """Drop what is known of a session that has ended."""
        fd = self._fd_of.pop(peer, None)
        self._key_of.pop(peer, None)
        if fd is not None:
            peers = self._peers_of[fd]
            peers.discard(peer)
            if not peers:
                del self._peers_of[fd]

    def has_events(self) -> bool:
        """Say whether connections have come or gone since the last call of `broken`."""
        return transport.has_input(self._monitor)

    def broken(self) -> list[bytes]:
        """Return the sessions that may be gone: their descriptor was closed since the last call."""
        peers: list[bytes] = []
        for _ in range(_MAX_EVENTS):
            if not transport.has_input(self._monitor):
                break
            event = parse_monitor_message(self._monitor.recv_multipart(_NOBLOCK))
            fd = int(event["value"])
            if event["event"] == _ACCEPTED:
                self._opened(fd)
            elif event["event"] == _ACCEPT_FAILED:
                self.starved += 1
            else:
                self._oversized.closed(fd)
                self._half_open.pop(fd, None)
                for peer in self._peers_of.pop(fd, ()):
                    del self._fd_of[peer]
                    self._key_of.pop(peer, None)
                    peers.append(peer)
        return peers

    def _opened(self, fd: int) -> None:
        """Watch a new connection; refuse it if it has one of the last descriptors."""
        if descriptors.is_spare(fd):
            self.turned_away += 1
            self.starved += 1
            reset_connection(fd)
        else:
            self._oversized.opened(fd)
            self._half_open[fd] = None
            if len(self._half_open) > MAX_HALF_OPEN:
                oldest = next(iter(self._half_open))
                del self._half_open[oldest]
                self.half_open_cut += 1
                reset_connection(oldest)

    def under_key(self, key: str) -> list[bytes]:
        """Return the sessions that came under a key."""
        return [peer for peer, own in self._key_of.items() if own == key]

    def cut(self, peer: bytes) -> None:
        """Reset the connection of a session, if it is still there."""
        fd = self._fd_of.get(peer)
        if fd is not None:
            reset_connection(fd)

    def cut_oversized(self) -> int:
        """Reset connections that send an envelope without end; return how many."""
        return self._oversized.check()

    def close(self, linger_ms: int) -> None:
        """Close socket and monitor; what was sent has this long to leave."""
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(linger_ms)
