"""Resets connections that send an envelope without end: libzmq bounds each frame of a message, not their number.

Nobody above libzmq sees a message before its last frame, and a ROUTER cannot close one connection. So the kernel is
asked how many bytes have come over each connection since its last whole envelope, and one that is far beyond what an
envelope may hold is reset. A question costs two microseconds, so each check asks about some of the connections in turn.

Only Linux answers. A descriptor is a hint, used again at once after a disconnection: each question is about whatever
it stands for now, and a connection that is younger than thought has fewer bytes than were noted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ..protocol.limits import MAX_ENVELOPE_BYTES

MAX_BYTES: Final = 2 * MAX_ENVELOPE_BYTES
"""One envelope, and as much again of the next that came while this one was read."""
PER_CHECK: Final = 256
"""Half a millisecond; ten checks a second see five thousand connections every two seconds."""
_BYTES_RECEIVED: Final = 128
"""Where tcp_info has tcpi_bytes_received, since Linux 4.1."""
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)


def received_bytes(fd: int) -> int | None:
    """Return how many bytes have come over a TCP connection; None if it is none (any more), or nobody knows."""
    if _TCP_INFO is None:
        return None
    try:
        with _borrowed(fd) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_RECEIVED + 8)
    except OSError:
        return None
    return int(struct.unpack_from("Q", info, _BYTES_RECEIVED)[0]) if len(info) == _BYTES_RECEIVED + 8 else None


def reset_connection(fd: int) -> None:
    """End a connection; libzmq sees that and closes it, by RST: a peer that is stuck in a write never reads FIN."""
    with contextlib.suppress(OSError), _borrowed(fd) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


def _borrowed(fd: int) -> socket.socket:
    """Return a second descriptor of the same connection, so that it cannot become another one between two calls."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=os.dup(fd))


class OversizedMessages:
    """The connections of one socket, and how many bytes came over each since its last whole envelope."""

    def __init__(
        self,
        *,
        received: Callable[[int], int | None] = received_bytes,
        reset: Callable[[int], None] = reset_connection,
    ) -> None:
        self._received = received
        self._reset = reset
        self._noted: OrderedDict[int, int] = OrderedDict()
        """By descriptor: bytes received when an envelope was last seen to have ended. The next in turn stands first."""
        self._suspects: set[int] = set()
        self.completed: set[int] = set()
        """Descriptors over which a whole envelope came since their last check; whoever reads adds to it."""

    def opened(self, fd: int) -> None:
        """Note a new connection."""
        self._noted[fd] = 0
        self.completed.discard(fd)
        self._suspects.discard(fd)

    def closed(self, fd: int) -> None:
        """Forget a connection."""
        self._noted.pop(fd, None)
        self._suspects.discard(fd)

    def check(self) -> int:
        """Reset each connection that is beyond the bound for the second time in a row; return how many.

        The second time: by then everything that was whole has been read, however busy this process was before.
        """
        cut = 0
        for _ in range(min(PER_CHECK, len(self._noted))):
            fd, noted = self._noted.popitem(last=False)
            received = self._received(fd)
            if received is None:
                continue
            if fd in self.completed or received < noted:
                noted = received
            self.completed.discard(fd)
            is_beyond, was_beyond = received - noted > MAX_BYTES, fd in self._suspects
            if is_beyond and was_beyond:
                self._reset(fd)
                cut += 1
                continue
            (self._suspects.add if is_beyond else self._suspects.discard)(fd)
            self._noted[fd] = noted
        return cut
