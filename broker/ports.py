"""One of the broker's two sockets: envelopes in, and which sessions stand behind which descriptor.

When a connection breaks, libzmq tells the descriptor that was closed and nothing else. Descriptors are used again at
once, so it is only a hint who may be gone: whoever was last heard over that descriptor is asked, and a send tells.
"""

from __future__ import annotations

from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from ..protocol import descriptors, transport
from ..protocol.codec import Codec
from .core import Side
from .egress import Egress
from .unfinished import Unfinished, shut_down

_NOBLOCK: Final = int(zmq.NOBLOCK)
_ACCEPTED: Final = int(zmq.EVENT_ACCEPTED)
_ACCEPT_FAILED: Final = int(zmq.EVENT_ACCEPT_FAILED)
_EVENTS_PER_LOOK: Final = 2000
"""Of connections that come and go; further ones wait for the next look, as everything else waits for this one."""


class Port:
    """A ROUTER with what belongs to it."""

    def __init__(self, side: Side, socket: zmq.Socket[bytes], codec: Codec[Any], *, with_user: bool) -> None:
        self.side = side
        self.codec = codec
        self.egress = Egress(socket)
        self._socket = socket
        self._with_user = with_user
        self._monitor = transport.monitor_connections(socket)
        self._fd_of: dict[bytes, int] = {}
        self._peers_of: dict[int, set[bytes]] = {}
        self._unfinished = Unfinished()
        self.turned_away = 0
        """Connections that were sent away for want of descriptors, and …"""
        self.is_starved = False
        """… whether there was any want, since the server last looked."""

    def descriptors(self) -> tuple[int, int]:
        """Return what an event loop watches: (for envelopes, for connections that come and go)."""
        return transport.descriptor(self._socket), transport.descriptor(self._monitor)

    def has_input(self) -> bool:
        """Say whether an envelope can be read; the question is half as dear as a read in vain."""
        return transport.has_input(self._socket)

    def receive(self) -> tuple[bytes, str, int, list[transport.Frame]] | None:
        """Take one envelope: (peer, user, descriptor, frames)."""
        received = transport.receive_routed(self._socket, with_user=self._with_user)
        if received is not None:
            self._unfinished.heard.add(received[2])
        return received

    def is_noted(self, peer: bytes, fd: int) -> bool:
        """Say whether this session is known to come over this descriptor."""
        return self._fd_of.get(peer) == fd

    def note(self, peer: bytes, fd: int) -> None:
        """Remember over which descriptor a session comes."""
        self._fd_of[peer] = fd
        self._peers_of.setdefault(fd, set()).add(peer)

    def forget(self, peer: bytes) -> None:
        """Drop what is known of a session that has ended."""
        fd = self._fd_of.pop(peer, None)
        if fd is not None:
            peers = self._peers_of[fd]
            peers.discard(peer)
            if not peers:
                del self._peers_of[fd]

    def broken(self) -> list[bytes]:
        """Return the sessions that may be gone: their descriptor was closed since the last time."""
        peers: list[bytes] = []
        for _ in range(_EVENTS_PER_LOOK):
            if not transport.has_input(self._monitor):
                break
            event = parse_monitor_message(self._monitor.recv_multipart(_NOBLOCK))
            fd = int(event["value"])
            if event["event"] == _ACCEPTED:
                self._opened(fd)
            elif event["event"] == _ACCEPT_FAILED:
                self.is_starved = True
            else:
                self._unfinished.closed(fd)
                for peer in self._peers_of.pop(fd, ()):
                    del self._fd_of[peer]
                    peers.append(peer)
        return peers

    def _opened(self, fd: int) -> None:
        """Note a new connection; send it away if it has one of the last descriptors."""
        if descriptors.is_spare(fd):
            self.turned_away += 1
            self.is_starved = True
            shut_down(fd)
        else:
            self._unfinished.opened(fd)

    def cut_endless(self) -> int:
        """Cut off who sends an envelope without end; return how many."""
        return self._unfinished.look()

    def close(self, linger_ms: int) -> None:
        """Close both; what was sent has so long to leave."""
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(linger_ms)
