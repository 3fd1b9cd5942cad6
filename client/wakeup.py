"""How other threads reach the I/O thread: they leave a command, and ring only if it sleeps.

However many commands come while it works or until it wakes, they are one ring and one pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import zmq

Command = Callable[[float], None]


class Wakeup:
    """A deque of commands and the far end of the I/O thread's wake-up pair."""

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
