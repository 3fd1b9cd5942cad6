"""Brings the events of one request from the client's shell (its I/O thread, or a loop) to whoever reads them.

There is no lock of our own: the bytes that lie unread are the difference of two counters with one writer each.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from ..protocol import messages as m
from ..protocol.limits import STREAM_BUFFER_BYTES

if TYPE_CHECKING:
    import asyncio

    from .io_base import BaseIo
    from .response import Event
    from .wakeup import ReaderWakeup

ONE_AT_A_TIME: Final = "somebody else is reading this request; let them end first, for its end comes once"
_SLICE_S: Final = 0.2 if sys.platform == "win32" else 5.0
"""Longest wait in one piece: on Windows Ctrl-C is only seen between two; elsewhere it is a look at the I/O thread."""


TOGETHER_BYTES: Final = 16 << 10
"""Of a stream, so much is taken together: what it becomes, somebody else's buffer has to hold."""


class Mailbox:
    """For a thread that waits."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._bytes_in = 0
        self._bytes_out = 0
        self.turn: Final = threading.Lock()
        """Held by whoever reads: the end of a request comes once, so a second one would wait for ever."""

    def put(self, event: Event) -> bool:
        """Add an event; False when more bytes lie unread than a stream may hold. Called by the shell."""
        self._events.put(event)
        if type(event) is m.Partial:
            self._bytes_in += len(event.body)
            return self._bytes_in - self._bytes_out <= STREAM_BUFFER_BYTES
        return True

    def take(self, io: BaseIo, timeout_s: float | None = None) -> Event:
        """Wait for the next event. Raises TimeoutError."""
        give_up_at = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            wait_s = _SLICE_S if give_up_at is None else min(_SLICE_S, give_up_at - time.monotonic())
            try:
                event = self._events.get(timeout=max(0.0, wait_s))
            except queue.Empty:
                io.check_alive()
                if give_up_at is not None and time.monotonic() >= give_up_at:
                    raise TimeoutError from None
                continue
            if type(event) is m.Partial:
                self._bytes_out += len(event.body)
            return event


class AsyncMailbox:
    """For a task that waits; its event loop is called once for many events."""

    _reader: asyncio.Future[None] | None = None
    _bytes_in = 0
    _bytes_out = 0

    def __init__(self, wakeup: ReaderWakeup) -> None:
        self._wakeup = wakeup
        self._events: deque[Event] = deque()

    def put(self, event: Event) -> bool:
        """Add an event; False when more bytes lie unread than a stream may hold. Called by the shell."""
        self._events.append(event)
        self._wakeup.ring(self._wake)
        if type(event) is m.Partial:
            self._bytes_in += len(event.body)
            return self._bytes_in - self._bytes_out <= STREAM_BUFFER_BYTES
        return True

    def _wake(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def take_some(self) -> list[Event]:
        """Wait for the next event, and take those that are there with it, until they are TOGETHER_BYTES."""
        if self._reader is not None or not self._events:
            await self._wait()
        enough = self._bytes_out + TOGETHER_BYTES
        events = [self._take()]
        while self._events and self._bytes_out < enough:
            events.append(self._take())
        return events

    async def take(self) -> Event:
        """Wait for the next event. Raises RuntimeError if another task does."""
        if self._reader is not None or not self._events:
            await self._wait()
        return self._take()

    async def _wait(self) -> None:
        if self._reader is not None:
            raise RuntimeError(ONE_AT_A_TIME)
        while not self._events:
            self._reader = self._wakeup.make_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def _take(self) -> Event:
        event = self._events.popleft()
        if type(event) is m.Partial:
            self._bytes_out += len(event.body)
        return event
