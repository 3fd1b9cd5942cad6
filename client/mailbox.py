"""How events reach threads: left by the I/O thread, waited for by the one that reads. No lock of our own."""

from __future__ import annotations

import queue
import sys
import time
from typing import Final

from ..protocol import messages as m
from ..protocol.limits import STREAM_BUFFER_BYTES
from .io_thread import IoThread
from .reading import Event

_SLICE_S: Final = 0.2 if sys.platform == "win32" else 5.0
"""Longest wait in one piece: on Windows Ctrl-C is only seen between two; elsewhere it is a look at the I/O thread."""


class Mailbox:
    """Events of one request on their way from the I/O thread to the thread that reads."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        # Two counters with one writer each: their difference needs no lock.
        self._bytes_in = 0
        self._bytes_out = 0

    def put(self, event: Event) -> bool:
        """Add an event; False when more bytes lie unread than a stream may hold. Called by the I/O thread."""
        self._events.put(event)
        if type(event) is m.Partial:
            self._bytes_in += len(event.body)
            return self._bytes_in - self._bytes_out <= STREAM_BUFFER_BYTES
        return True

    def take(self, io: IoThread, timeout_s: float | None = None) -> Event:
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
