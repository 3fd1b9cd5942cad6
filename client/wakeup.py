"""Wakes a thread or an event loop that sleeps: once, however much is left for it meanwhile.

Of an event loop nothing is asked but `call_soon_threadsafe`, so Proactor and uvloop do; no file descriptor is watched.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import zmq

if TYPE_CHECKING:
    import asyncio

Command = Callable[[float], None]


class Wakeup:
    """Wakes the I/O thread: a deque of commands, and the far end of its wake-up pair."""

    def __init__(self, bell: zmq.Socket[bytes]) -> None:
        self._bell = bell
        self._commands: deque[Command] = deque()
        # Re-entrant: while it is held the collector may run, and a forgotten stream then posts its cancellation.
        self._lock = threading.RLock()
        self._is_awake = True
        self._is_closed = False

    def post(self, command: Command) -> bool:
        """Leave a command; False when nobody will take it any more."""
        self._commands.append(command)
        if not self._is_awake:
            self._ring()
        return not self._is_closed

    def _ring(self) -> None:
        with self._lock:
            if not self._is_awake and not self._is_closed:
                self._is_awake = True
                self._bell.send(b"", zmq.NOBLOCK)

    # --- called by the I/O thread

    def may_sleep(self) -> bool:
        """Announce sleep; False when commands lie here already. Who posts from now on, rings."""
        self._is_awake = False
        return not self._commands

    def wake(self) -> None:
        """Announce work: nobody needs to ring."""
        self._is_awake = True

    def take(self, now: float) -> None:
        """Carry out the commands that are here; those that come meanwhile wait for the next pass."""
        for _ in range(len(self._commands)):
            self._commands.popleft()(now)

    def close(self, now: float) -> None:
        """Take no more; carry out the last ones."""
        with self._lock:
            self._is_closed = True
            self._bell.close(0)
        self.take(now)


class ReaderWakeup(Protocol):
    """Wakes the readers in one event loop."""

    def ring(self, wake: Callable[[], None]) -> None:
        """Have `wake` called in the loop."""
        ...

    def make_future(self) -> asyncio.Future[None]:
        """Make what a reader awaits. Called in the loop."""
        ...


class LoopWakeup:
    """Wakes readers in one event loop, which is called once for all events of a pass of an I/O thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # these are kept by loop, and must not keep the loop itself
        self._rung: deque[Callable[[], None]] = deque()
        self._is_scheduled = False

    def ring(self, wake: Callable[[], None]) -> None:
        """Have `wake` called in the loop. Called by the I/O thread."""
        self._rung.append(wake)
        if not self._is_scheduled:  # set false before the deque is emptied, so nothing is left behind
            self._is_scheduled = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._wake_all)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._rung.clear()

    def make_future(self) -> asyncio.Future[None]:
        """Make what a reader awaits. Called in the loop."""
        loop = self._loop()
        assert loop is not None  # it runs
        return loop.create_future()

    def _wake_all(self) -> None:
        self._is_scheduled = False
        while self._rung:
            self._rung.popleft()()


def wakeup_of(loop: asyncio.AbstractEventLoop) -> LoopWakeup:
    """Return the one of this loop, whichever clients are used in it."""
    wakeup = _of_loop.get(loop)
    if wakeup is None:
        wakeup = _of_loop[loop] = LoopWakeup(loop)
    return wakeup


_of_loop: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopWakeup]] = weakref.WeakKeyDictionary()
