"""What is on its way out of one socket: envelopes for each peer, in order, never blocking and never unbounded.

With ROUTER_MANDATORY a full pipe is EAGAIN and a vanished peer EHOSTUNREACH. POLLOUT of a ROUTER means "some peer takes
something", so a peer that did not is tried again by the clock: after 5 ms, then twice as long, up to 50 ms.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import zmq

from ..protocol import codec, transport
from ..protocol import messages as m
from ..protocol.errors import ProtocolError
from .core import SendFailure

FIRST_RETRY_S: Final = 0.005
LAST_RETRY_S: Final = 0.05
MAX_PENDING_BYTES: Final = 16 << 20
"""For one peer, beyond what libzmq holds: twice the default window, so only a peer that reads nothing meets it."""

log = logging.getLogger(__name__)

_Envelope = tuple[codec.Frames, Sequence[m.Message]]
Failed = tuple[bytes, SendFailure, list[m.Message]]


@dataclass
class _Pending:
    """What waits for one peer.

    The messages of a split envelope stand with its first part. Once that is sent, nobody can say which of them have
    left, and a request that may have left must not count as unsent: it could run twice.
    """

    retry_at: float
    retry_s: float = FIRST_RETRY_S
    size_bytes: int = 0
    envelopes: deque[_Envelope] = field(default_factory=deque[_Envelope])

    def add(self, envelopes: Sequence[codec.Frames], messages: Sequence[m.Message]) -> None:
        for index, frames in enumerate(envelopes):
            self.envelopes.append((frames, messages if index == 0 else ()))
            self.size_bytes += sum(map(len, frames))


class Egress:
    """Sends through one socket; keeps what it does not take at once."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._pending: dict[bytes, _Pending] = {}
        self.next_retry = math.inf
        """When `retry` is due."""
        self.retries = 0

    def send(self, peer: bytes, messages: Sequence[m.Message], now: float) -> Failed | None:
        """Send messages in as few envelopes as they need, behind what already waits for that peer.

        Returns:
            None, or why that peer is given up, with everything that has certainly not left; UNPACKABLE gives up those
            messages alone.
        """
        try:
            envelopes = codec.pack(messages)
        except ProtocolError:
            return self._send_what_can_be(peer, messages, now)
        waiting = self._pending.get(peer) if self._pending else None
        if waiting is None:
            for index, frames in enumerate(envelopes):
                failure = self._try(peer, frames)
                unsent = messages if index == 0 else ()
                if failure is SendFailure.UNREACHABLE:
                    return peer, failure, list(unsent)
                if failure is not None:
                    waiting = self._pending[peer] = _Pending(now + FIRST_RETRY_S)
                    self.next_retry = min(self.next_retry, waiting.retry_at)
                    envelopes, messages = envelopes[index:], unsent
                    break
            else:
                return None
        waiting.add(envelopes, messages)
        return self._give_up(peer, SendFailure.FULL) if waiting.size_bytes > MAX_PENDING_BYTES else None

    def _send_what_can_be(self, peer: bytes, messages: Sequence[m.Message], now: float) -> Failed | None:
        """Leave out what cannot be packed: it costs the peer that one message, and nobody else anything."""
        good, bad = codec.split_packable(messages)
        failed = self.send(peer, good, now) if good else None
        for message, why in bad:
            log.error("a message to %s cannot be sent: %s: %s", peer.hex(), type(message).__name__, why)
        return failed or (peer, SendFailure.UNPACKABLE, [message for message, _ in bad])

    def send_raw(self, peer: bytes, frames: codec.Frames) -> None:
        """Try once to send something that nobody will miss."""
        self._try(peer, frames)

    def retry(self, now: float) -> list[Failed]:
        """Try again what is due; return the peers that are given up."""
        failed: list[Failed] = []
        for peer, waiting in list(self._pending.items()):
            if waiting.retry_at > now:
                continue
            self.retries += 1
            failure = self._flush(peer, waiting)
            if failure is SendFailure.UNREACHABLE:
                failed.append(self._give_up(peer, failure))
            elif failure is not None:
                waiting.retry_at = now + waiting.retry_s
                waiting.retry_s = min(2 * waiting.retry_s, LAST_RETRY_S)
            else:
                del self._pending[peer]
        self.next_retry = min((one.retry_at for one in self._pending.values()), default=math.inf)
        return failed

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

    def _give_up(self, peer: bytes, why: SendFailure) -> Failed:
        waiting = self._pending.pop(peer)
        return peer, why, [message for _, messages in waiting.envelopes for message in messages]

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
