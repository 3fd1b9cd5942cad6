"""Who sends an envelope without end: libzmq bounds each frame of a message, but not how many frames it has.

Nobody above libzmq sees a message before its last frame, and a ROUTER cannot close one connection. So the kernel is
asked how many bytes have come over each connection since its last whole envelope; one that is far beyond what an
envelope may hold is shut down. It is asked only when this process has grown, as it costs a microsecond a connection.

Linux alone tells both. A descriptor is a hint, used again at once after a disconnection: each question is about
whatever it stands for now, and a connection that is younger than thought has fewer bytes than were noted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..protocol.limits import MAX_ENVELOPE_BYTES

MOST_BYTES: Final = 2 * MAX_ENVELOPE_BYTES
"""One envelope, and as much again of the next that came while this one was read."""
GROWTH_BYTES: Final = 16 << 20
"""Growth of the process that is worth a look."""
_STATM: Final = Path("/proc/self/statm")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
_BYTES_RECEIVED: Final = 128
"""Where tcp_info has tcpi_bytes_received, since Linux 4.1."""
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)


def resident_bytes() -> int:
    """Return the memory this process holds; 0 where the system does not tell."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


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


def shut_down(fd: int) -> None:
    """End a connection; libzmq sees that and closes it."""
    with contextlib.suppress(OSError), _borrowed(fd) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def _borrowed(fd: int) -> socket.socket:
    """Give a second descriptor of the same connection: what is asked and what is shut down cannot change between."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=os.dup(fd))


class Unfinished:
    """The connections of one socket, and what came over each since its last whole envelope."""

    def __init__(
        self,
        *,
        resident: Callable[[], int] = resident_bytes,
        received: Callable[[int], int | None] = received_bytes,
        cut: Callable[[int], None] = shut_down,
    ) -> None:
        self._resident = resident
        self._received = received
        self._cut = cut
        self._noted: dict[int, int] = {}
        """By descriptor: bytes received when it was last known to be between two envelopes, or nearly so."""
        self._suspects: set[int] = set()
        self._calm_bytes = 0
        self.heard: set[int] = set()
        """Descriptors over which a whole envelope has come since the last look; whoever reads adds to it."""

    def opened(self, fd: int) -> None:
        """Note a new connection."""
        self._noted[fd] = 0
        self.heard.discard(fd)
        self._suspects.discard(fd)

    def closed(self, fd: int) -> None:
        """Forget a connection."""
        self._noted.pop(fd, None)
        self._suspects.discard(fd)

    def look(self) -> int:
        """Cut off whoever is beyond the bound for the second time in a row; return how many those are.

        The second time: in between everything that was whole has been read, however busy this process was before.
        """
        resident = self._resident()
        self._calm_bytes = min(self._calm_bytes, resident)
        if not self._suspects and resident < self._calm_bytes + GROWTH_BYTES:
            return 0
        self._calm_bytes = resident
        beyond = {fd for fd in list(self._noted) if self._is_beyond(fd)}
        endless = beyond & self._suspects
        for fd in endless:
            self._cut(fd)
            self._noted.pop(fd)
        self._suspects = beyond - endless
        self.heard.clear()
        return len(endless)

    def _is_beyond(self, fd: int) -> bool:
        received = self._received(fd)
        if received is None:
            del self._noted[fd]
            return False
        if fd in self.heard or received < self._noted[fd]:
            self._noted[fd] = received
        return received - self._noted[fd] > MOST_BYTES
