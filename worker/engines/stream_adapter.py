"""A StreamEngine as the loop of an engine process sees it: coroutines on a thread of their own, text through a queue.

Only the thread of the coroutines touches the engine; only the loop's thread touches the `Outbox`. Between them are
`call_soon_threadsafe` in one direction and a queue with a wake-up in the other.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

from .adapters import Outbox, describe
from .base import (
    AnswerEnd,
    EngineFatalError,
    EngineStats,
    Failure,
    RequestFailedError,
    RequestRefusedError,
    StreamEngine,
)
from .ipc import Kind, Refused, Submit, SubmitTask, TextChunk

log = logging.getLogger(__name__)

_MAX_QUEUED: Final = 1024
"""Pieces that the loop has not taken; from here on the generators wait (a loop in a step takes them all at its end)."""
_PAUSE_S: Final = 0.005
_BEAT_S: Final = 0.25
_STILL_S: Final = 2.0
"""A coroutine that blocks its event loop for so long counts as standing still."""
_CLOSE_S: Final = 1.0


class StreamAdapter:
    """A StreamEngine: every request is a task of its own."""

    kind: Kind = "stream"

    def __init__(self, engine: StreamEngine, out: Outbox, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._out = out
        self._wake = wake
        self._slots = engine.capacity().slots
        self._live: set[int] = set()
        self._tasks: dict[int, asyncio.Task[AnswerEnd | None]] = {}
        self._chunks: queue.SimpleQueue[TextChunk] = queue.SimpleQueue()
        self._requests = self._pieces = self._most = 0
        self._watch: asyncio.Task[None] | None = None
        self._end_of_engine: EngineFatalError | None = None
        """Set once the engine can serve nobody any more, after the last word about each request."""
        self._beat_at = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="zmqrt-stream", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether text is there to be taken, or the news that the engine is gone."""
        return not self._chunks.empty() or self._end_of_engine is not None

    @property
    def is_alive(self) -> bool:
        """Whether the event loop has moved lately."""
        return time.monotonic() - self._beat_at < _STILL_S

    def submit(self, message: Submit | SubmitTask) -> None:
        """Start a task."""
        if isinstance(message, Submit):
            ticket = message.request.ticket
            self._out.messages.append(Refused(ticket, full=False, error="this service takes whole tasks"))
            return
        if len(self._live) >= self._slots:
            self._out.messages.append(Refused(message.ticket, full=True, error=f"all {self._slots} slots are taken"))
            return
        self._live.add(message.ticket)
        self._requests += 1
        self._most = max(self._most, len(self._live))
        self._loop.call_soon_threadsafe(self._start, message.ticket, message.task)

    def cancel(self, ticket: int) -> None:
        """Cancel its task, which says the last word."""
        self._loop.call_soon_threadsafe(self._cancel, ticket)

    def advance(self, timeout_s: float) -> None:  # noqa: ARG002 - never waits: the thread wakes the loop
        """Take the text that is there. Raises EngineFatalError once the engine can go on no more."""
        end_of_engine = self._end_of_engine
        for _ in range(self._chunks.qsize()):
            chunk = self._chunks.get()
            self._out.messages.append(chunk)
            self._pieces += not chunk.done
            if chunk.done:
                self._live.discard(chunk.ticket)
        if end_of_engine is not None:
            raise end_of_engine

    def stats(self) -> EngineStats:
        """Count requests as steps and pieces of text as tokens."""
        return EngineStats(running=len(self._live), steps=self._requests, tokens=self._pieces, largest_batch=self._most)

    def close(self) -> None:
        """Cancel all tasks, close the engine and end the thread."""
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(_CLOSE_S)

    # --- on the thread of the coroutines -----------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._beat()
        watch = getattr(self._engine, "watch", None)
        if watch is not None:
            self._watch = self._loop.create_task(watch())
            self._watch.add_done_callback(self._end_all)
        self._loop.run_forever()
        self._loop.close()

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._loop.call_later(_BEAT_S, self._beat)

    def _start(self, ticket: int, task: dict[str, Any]) -> None:
        running = self._loop.create_task(self._stream(ticket, task))
        self._tasks[ticket] = running
        # In a callback, since a task that is cancelled before it began never runs a line of its own.
        running.add_done_callback(lambda done: self._end(ticket, done))

    def _cancel(self, ticket: int) -> None:
        task = self._tasks.get(ticket)
        if task is not None:
            task.cancel()

    def _end(self, ticket: int, done: asyncio.Task[AnswerEnd | None]) -> None:
        del self._tasks[ticket]
        if self._end_of_engine is not None:
            return  # its last word was that of the engine
        raised = None if done.cancelled() else done.exception()
        if raised is not None and not isinstance(raised, RequestFailedError | RequestRefusedError):
            log.error("ticket %d: the engine failed", ticket, exc_info=raised)
        error = "cancelled" if done.cancelled() else _words(raised) if raised is not None else None
        ending = done.result() if error is None else None
        self._put(TextChunk(ticket, "", done=True, error=error, failure=_failure(raised), ending=ending))

    def _end_all(self, watch: asyncio.Task[None]) -> None:
        """Say the last word about every request, for the engine has ended."""
        if watch.cancelled():
            return
        raised = watch.exception() or RuntimeError("it watches itself no more")
        words = str(raised) if isinstance(raised, EngineFatalError) else describe(raised)
        for ticket in self._tasks:
            self._put(TextChunk(ticket, "", done=True, error=words, failure="engine_restarted"))
        self._end_of_engine = EngineFatalError(words)
        for task in self._tasks.values():
            task.cancel()
        self._wake()

    async def _stream(self, ticket: int, task: dict[str, Any]) -> AnswerEnd | None:
        pieces = self._engine.generate(task)
        try:
            async for piece in pieces:
                if isinstance(piece, AnswerEnd):
                    return piece
                self._put(TextChunk(ticket, piece))
                while self._chunks.qsize() > _MAX_QUEUED:  # noqa: ASYNC110 - the other side is a thread, not a task
                    await asyncio.sleep(_PAUSE_S)
        finally:
            if hasattr(pieces, "aclose"):  # an iterator of one's own need not have it; a generator does
                await cast("Any", pieces).aclose()
        return None

    def _put(self, chunk: TextChunk) -> None:
        self._chunks.put(chunk)
        self._wake()

    def _stop(self) -> None:
        for task in list(self._tasks.values()):
            task.cancel()
        self._loop.create_task(self._close()).add_done_callback(lambda _: self._loop.stop())

    async def _close(self) -> None:
        watch = [] if self._watch is None else [self._watch]
        for task in watch:
            task.cancel()
        await asyncio.gather(*watch, *self._tasks.values(), return_exceptions=True)
        await self._engine.close()


def _words(raised: BaseException) -> str:
    """Return what an engine says on purpose as it is, and of whatever else it raises the class as well."""
    return str(raised) if isinstance(raised, RequestFailedError | RequestRefusedError) else describe(raised)


def _failure(raised: BaseException | None) -> Failure:
    if isinstance(raised, RequestFailedError):
        return raised.failure
    return "bad_request" if isinstance(raised, RequestRefusedError) else ""
