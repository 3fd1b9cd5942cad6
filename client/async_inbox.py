"""How events reach tasks: left by the I/O thread, fetched in the loop, which is called once for many.

`call_soon_threadsafe` is all that is asked of a loop, so Proactor and uvloop do, and no file descriptor is watched.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import deque

from ..protocol import messages as m
from ..protocol.limits import STREAM_BUFFER_BYTES
from .reading import Event


class LoopWakeup:
    """Wakes readers in one event loop: however many events a pass of the I/O thread brings, the loop is called once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)  # the client keeps bells by loop, and must not keep the loop itself
        self._rung: deque[AsyncMailbox] = deque()
        self._is_scheduled = False

    def ring(self, mailbox: AsyncMailbox) -> None:
        """Wake whoever waits on the mailbox. Called by the I/O thread."""
        self._rung.append(mailbox)
        if not self._is_scheduled:  # set false before the deque is emptied, so nothing is left behind
            self._is_scheduled = True
            loop = self._loop()
            try:
                if loop is not None:
                    loop.call_soon_threadsafe(self._wake_all)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._rung.clear()

    def _wake_all(self) -> None:
        self._is_scheduled = False
        while self._rung:
            self._rung.popleft().wake()


class AsyncMailbox:
    """Events of one request on their way from the I/O thread to the task that reads."""

    def __init__(self, bell: LoopWakeup) -> None:
        self._bell = bell
        self._events: deque[Event] = deque()
        self._reader: asyncio.Future[None] | None = None
        # Two counters with one writer each: their difference needs no lock.
        self._bytes_in = 0
        self._bytes_out = 0

    def put(self, event: Event) -> bool:
        """Add an event; False when more bytes lie unread than a stream may hold. Called by the I/O thread."""
        self._events.append(event)
        self._bell.ring(self)
        if type(event) is m.Partial:
            self._bytes_in += len(event.body)
            return self._bytes_in - self._bytes_out <= STREAM_BUFFER_BYTES
        return True

    def wake(self) -> None:
        """Let the reader look."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> Event:
        """Wait for the next event."""
        while not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        event = self._events.popleft()
        if type(event) is m.Partial:
            self._bytes_out += len(event.body)
        return event
