"""A BatchEngine as the loop of an engine process sees it: a batcher in front, and batches on a thread of their own.

The loop goes on meanwhile: it takes in what fills the next batch, serves the other adapters and shows itself. Only the
loop's thread touches the batcher and the `Outbox`; a batch and its outcome pass through queues.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from .adapters import Outbox, describe
from .base import BatchEngine, EngineFatalError, EngineStats, Item, ItemResult
from .batcher import Batcher
from .ipc import Kind, Refused, Submit, SubmitTask

log = logging.getLogger(__name__)

_ALIVE_S: Final = 10.0
"""A batch that runs longer is not vouched for: the process falls silent, and the agent's stall timer begins to run."""
_CLOSE_S: Final = 1.0


class BatchAdapter:
    """A BatchEngine: one batch at a time, and the next one fills while it runs."""

    kind: Kind = "batch"

    def __init__(self, engine: BatchEngine, out: Outbox, batcher: Batcher, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._out = out
        self._batcher = batcher
        self._wake = wake
        self._slots = engine.capacity().slots
        self._running: list[Item] = []
        self._began_at = 0.0
        self._batches = self._largest = self._items = 0
        self._todo: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[list[ItemResult] | Exception] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="zmqrt-batch", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a batch has ended, or one can be begun."""
        return not self._done.empty() or (not self._running and len(self._batcher) > 0)

    @property
    def is_alive(self) -> bool:
        """Whether the batch that runs may still be believed in."""
        return not self._running or time.monotonic() - self._began_at < _ALIVE_S

    def submit(self, message: Submit | SubmitTask) -> None:
        """Let the item wait for its batch."""
        if isinstance(message, Submit):
            ticket = message.request.ticket
            self._out.messages.append(Refused(ticket, full=False, error="this service takes whole tasks"))
        elif len(self._batcher) + len(self._running) >= self._slots:
            self._out.messages.append(Refused(message.ticket, full=True, error=f"all {self._slots} places are taken"))
        else:
            self._batcher.add(Item(ticket=message.ticket, task=message.task, length=message.length), time.monotonic())

    def cancel(self, ticket: int) -> None:
        """Take the item out if it waits; the result of one that runs is its last word."""
        if self._batcher.cancel(ticket):
            self._out.results.append(ItemResult(ticket=ticket, error="cancelled"))

    def advance(self, timeout_s: float) -> None:  # noqa: ARG002 - never waits: the thread wakes the loop
        """Take in the batch that has ended, and begin the next one."""
        if not self._done.empty():
            batch, self._running = self._running, []
            self._take_in(batch, self._done.get())
        batch = self._batcher.next_batch(time.monotonic(), idle=not self._running) or []
        if batch:
            self._batches += 1
            self._largest = max(self._largest, len(batch))
            self._running, self._began_at = batch, time.monotonic()
            self._todo.put(batch)

    def _take_in(self, batch: list[Item], outcome: list[ItemResult] | Exception) -> None:
        if isinstance(outcome, EngineFatalError):
            raise outcome
        if isinstance(outcome, Exception):
            log.error("a batch of %d failed", len(batch), exc_info=outcome)
            lost = self._batcher.failed(batch)
            self._out.results += [ItemResult(ticket=item.ticket, error=describe(outcome)) for item in lost]
            return
        self._items += len(batch)
        self._out.results += outcome

    def stats(self) -> EngineStats:
        """Count batches as steps and items as tokens."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._batcher),
            steps=self._batches,
            tokens=self._items,
            largest_batch=self._largest,
        )

    def close(self) -> None:
        """Let the batch end if it is short, and close the engine."""
        self._todo.put(None)
        self._thread.join(_CLOSE_S)
        self._engine.close()

    # --- on the thread of the batches --------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._todo.get()) is not None:
            try:
                outcome: list[ItemResult] | Exception = self._run(batch)
            except Exception as error:  # noqa: BLE001 - the loop decides what it means
                outcome = error
            self._done.put(outcome)
            self._wake()

    def _run(self, batch: list[Item]) -> list[ItemResult]:
        results = self._engine.run(batch)
        if [item.ticket for item in results] != [item.ticket for item in batch]:
            raise ValueError(f"the engine gave {len(results)} results for {len(batch)} items, or in another order")
        return results
