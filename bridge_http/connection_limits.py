"""What bounds the connections of a bridge: how many there may be, and how long each is waited for.

There may be as many as there are file descriptors for: without a bound the system refuses in silence, and nobody is
told. A newcomer takes the place of the connection that has idled longest. Idle is one without a request under way:
between two of them, within a head, or with the rest of a body that nobody waits for any more.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol

_PROBES_S: Final = (0.25, 0.05, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
"""When to see whether a caller that sends no more still reads: its machine says no to the first byte, ours says so at
the second. Nine, since so many letters of an answer are known before it is; later than most answers take."""
_KEPT_FREE: Final = 64
"""File descriptors for everything else: sockets to brokers, the log, resolving a name."""
_AT_LEAST: Final = 16
_AT_MOST: Final = 16_384
"""Each may hold a head of 64 KiB before anybody knows who it is; so many are 1 GiB."""
_LOG_AGAIN_S: Final = 60.0
log = logging.getLogger(__name__)


class _Connection(Protocol):
    """What the limit asks of a connection."""

    def make_room(self) -> None: ...


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
        self._open: set[_Connection] = set()
        self._idle: dict[_Connection, None] = {}  # who has idled longest comes first
        self._logged_at = -_LOG_AGAIN_S

    def admit(self, connection: _Connection) -> bool:
        """Let a connection in; False if all that are here are busy."""
        if len(self._open) >= self._most:
            if not self._idle:
                self._log_refusal()
                return False
            oldest = next(iter(self._idle))
            self.remove(oldest)
            oldest.make_room()
        self._open.add(connection)
        return True

    def mark_idle(self, connection: _Connection) -> None:
        """Note that a connection has no request under way."""
        if connection in self._open:
            self._idle[connection] = None

    def mark_busy(self, connection: _Connection) -> None:
        """Note that it has one."""
        self._idle.pop(connection, None)

    def remove(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def _log_refusal(self) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LOG_AGAIN_S:
            self._logged_at = now
            log.error(
                "all %d connections are busy, so newcomers are refused with 503; more need a higher limit of "
                "open files (ulimit -n) or --max-connections",
                self._most,
            )


class Clock:
    """Calls once, so long after it was started last.

    Nearly every wait ends before its time. So a timer of the loop that rings too early for the present wait is left to
    ring, and set anew then: a connection that answers many requests sets one every two minutes, and not for each.
    """

    def __init__(self) -> None:
        self._call: Callable[[], object] | None = None
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    def start(self, seconds: float, call: Callable[[], object]) -> None:
        """Begin anew."""
        loop = asyncio.get_running_loop()
        self._call, self._due = call, loop.time() + seconds
        if self._timer is None or self._due < self._rings_at:
            self._set(loop)

    def stop(self) -> None:
        """Call nobody any more, unless it is started again."""
        self._call = None

    def end(self) -> None:
        """Stop for good, and leave nothing behind."""
        self._call = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = self._due
        self._timer = loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        call, loop = self._call, asyncio.get_running_loop()
        if call is not None and self._due > self._rings_at:
            self._set(loop)
        elif call is not None:
            self._call = None
            call()


class _Answer(Protocol):
    """An answer under way: `probe` returns a byte that does not change it, or nothing where there is none."""

    def probe(self) -> bytes: ...


class PeerProbe:
    """Sends a byte that changes nothing, and again later: to see whether a caller still reads."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._clock = Clock()

    def start(self, answer: _Answer) -> None:
        """Begin anew."""
        self._wait(answer, 0)

    def stop(self) -> None:
        """Send nothing any more."""
        self._clock.stop()

    def end(self) -> None:
        """Stop for good."""
        self._clock.end()

    def _wait(self, answer: _Answer, at: int) -> None:
        def now() -> None:
            self._write(answer.probe())
            self._wait(answer, at + 1)

        if at < len(_PROBES_S):
            self._clock.start(_PROBES_S[at], now)
