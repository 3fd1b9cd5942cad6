"""How many connections there may be: as many as there are file descriptors for, and newcomers before those who idle.

Without a bound the system refuses in silence, and nobody is told. Idle is who has no request under way: between two of
them, within a head, or with the rest of a body that nobody waits for any more.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Final, Protocol

_KEPT_FREE: Final = 64
"""File descriptors for everything else: sockets to brokers, the log, resolving a name."""
_AT_LEAST: Final = 16
_AT_MOST: Final = 16_384
"""Each may hold a head of 64 KiB before anybody knows who it is; so many are 1 GiB."""
_SAY_AGAIN_S: Final = 60.0
log = logging.getLogger(__name__)


class Guest(Protocol):
    """A connection, as the limit sees it."""

    def make_room(self) -> None:
        """Close: no request is under way here."""
        ...


def most_connections(wanted: int) -> int:
    """Return how many connections there may be; 0 wants as many as there are file descriptors for."""
    most = _room()
    if wanted > most:
        log.warning("--max-connections %d is more than the limit of open files (ulimit -n) allows: %d", wanted, most)
    return min(wanted or most, most)


def _room() -> int:
    if sys.platform == "win32":
        return _AT_MOST  # sockets are no file descriptors there
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _AT_MOST
    return max(_AT_LEAST, min(_AT_MOST, soft - _KEPT_FREE))


class ConnectionLimit:
    """The connections of one bridge."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._here: set[Guest] = set()
        self._idle: dict[Guest, None] = {}  # who has idled longest comes first
        self._said_at = -_SAY_AGAIN_S

    def admit(self, guest: Guest) -> bool:
        """Let one in; False if everybody here is busy."""
        if len(self._here) >= self._most:
            if not self._idle:
                self._say()
                return False
            oldest = next(iter(self._idle))
            self.leave(oldest)
            oldest.make_room()
        self._here.add(guest)
        return True

    def idles(self, guest: Guest) -> None:
        """Note that a connection has no request under way."""
        if guest in self._here:
            self._idle[guest] = None

    def works(self, guest: Guest) -> None:
        """Note that it has."""
        self._idle.pop(guest, None)

    def leave(self, guest: Guest) -> None:
        """Forget one."""
        self._here.discard(guest)
        self._idle.pop(guest, None)

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            log.error(
                "all %d connections are busy, so newcomers are refused with 503; more need a higher limit of "
                "open files (ulimit -n) or --max-connections",
                self._most,
            )
