"""A RowEngine as the loop of an engine process sees it: items are cut into rows, and batches made of rows.

It computes on the loop's own thread, one batch a pass, as an engine for tokens does: a batch is bounded in tokens, so
what arrives and what is cancelled meanwhile is heard after it.

Whose rows go first is decided as by weighted fair queueing: first the item that would be done first if all items were
given equally many tokens at a time. So a small one passes large ones, of equal ones the first is done first instead of
all at the end, and a large one is passed only by what it would have shared its time with.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .adapters import Outbox, describe
from .base import EngineFatalError, EngineStats, Item, ItemResult, Row, RowEngine
from .batcher import Batcher
from .ipc import Kind, Refused, Submit, SubmitTask

log = logging.getLogger(__name__)
CANCELLED: Final = "cancelled"
_DIVIDE_S: Final = 0.05
"""Many large items that arrive at once take a minute to be divided; those that are under way do not wait for that."""


@dataclass(slots=True)
class _Divided:
    """An item under way: its rows, which the batcher knows by `first` and what follows, and what is done of them."""

    item: Item
    rows: list[Row]
    first: int
    numbers: dict[int, bytes] = field(default_factory=dict[int, bytes])


class RowAdapter:
    """A RowEngine: a batch of rows a pass, whosever they are."""

    kind: Kind = "batch"
    is_alive = True
    """A batch that does not end is silence: it runs on the loop's thread."""

    def __init__(
        self, engine: RowEngine, out: Outbox, batcher: Batcher, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._out = out
        self._batcher = batcher
        self._clock = clock
        self._slots = engine.capacity().slots
        self._arrived: deque[Item] = deque()
        self._divided: dict[int, _Divided] = {}
        self._owners: dict[int, _Divided] = {}
        """Of rows that are not done, by the number that the batcher knows them by."""
        self._next = 1
        self._share = 0.0
        """Tokens that an item would have been given that was always there, if all had got equally many."""
        self._batches = self._largest = self._rows = self._tokens = 0

    @property
    def is_busy(self) -> bool:
        """Whether an item is to be divided, or a batch can be run."""
        return bool(self._arrived) or bool(self._owners)

    def submit(self, message: Submit | SubmitTask) -> None:
        """Take an item in."""
        if isinstance(message, Submit):
            ticket = message.request.ticket
            self._out.messages.append(Refused(ticket, full=False, error="this service takes whole tasks"))
        elif len(self._arrived) + len(self._divided) >= self._slots:
            self._out.messages.append(Refused(message.ticket, full=True, error=f"all {self._slots} places are taken"))
        else:
            self._arrived.append(Item(ticket=message.ticket, task=message.task, length=message.length))

    def cancel(self, ticket: int) -> None:
        """Take an item and its rows out."""
        waiting = next((item for item in self._arrived if item.ticket == ticket), None)
        if waiting is not None:
            self._arrived.remove(waiting)
            self._out.results.append(ItemResult(ticket=ticket, error=CANCELLED))
        elif ticket in self._divided:
            self._end(self._divided[ticket], ItemResult(ticket=ticket, error=CANCELLED))

    def advance(self, timeout_s: float) -> None:  # noqa: ARG002 - never waits
        """Divide what has arrived, but no longer than batches may wait for; run one. Raises what breaks the engine."""
        give_up_at = self._clock() + _DIVIDE_S
        while self._arrived and self._clock() < give_up_at:
            self._divide(self._arrived.popleft())
        batch = self._batcher.next_batch(self._clock(), idle=True)
        if batch:
            self._run(batch)

    def _divide(self, item: Item) -> None:
        try:
            rows = self._engine.divide(item)
            if not rows:
                raise ValueError("the engine made no rows of it")
        except Exception as error:
            log.exception("ticket %d: its task could not be divided", item.ticket)
            rows = ItemResult(ticket=item.ticket, error=describe(error))
        if isinstance(rows, ItemResult):
            self._out.results.append(rows)
            return
        divided = self._divided[item.ticket] = _Divided(item, rows, self._next)
        self._next += len(rows)
        now, done_at = self._clock(), self._share + sum(len(row.token_ids) for row in rows)
        for number, row in enumerate(rows, divided.first):
            self._owners[number] = divided
            self._batcher.add(Item(ticket=number, task={}, length=len(row.token_ids)), now, done_at)

    def _run(self, batch: list[Item]) -> None:
        owners = [(row.ticket, self._owners[row.ticket]) for row in batch]
        rows = [divided.rows[number - divided.first] for number, divided in owners]
        try:
            outcomes = self._engine.run(rows)
            if len(outcomes) != len(rows):
                raise ValueError(f"the engine gave {len(outcomes)} results for {len(rows)} rows")
        except EngineFatalError:
            raise
        except Exception as error:
            log.exception("a batch of %d rows failed", len(batch))
            for row in self._batcher.failed(batch):
                self._take(row.ticket, error)
            return
        self._batches += 1
        self._largest = max(self._largest, len(batch))
        self._rows += len(batch)
        tokens = sum(len(row.token_ids) for row in rows)
        self._tokens += tokens
        self._share += tokens / len(self._divided)
        for row, outcome in zip(batch, outcomes, strict=True):
            self._take(row.ticket, outcome)

    def _take(self, number: int, outcome: bytes | Exception) -> None:
        """Take a row's outcome in: the item ends with its last row, or with the first that fails."""
        divided = self._owners.pop(number, None)
        if divided is None:
            return  # another row of its item has failed in this batch
        if isinstance(outcome, Exception):
            self._end(divided, ItemResult(ticket=divided.item.ticket, error=describe(outcome)))
            return
        divided.numbers[number - divided.first] = outcome
        if len(divided.numbers) == len(divided.rows):
            self._end(divided, self._unite(divided))

    def _unite(self, divided: _Divided) -> ItemResult:
        ticket, numbers = divided.item.ticket, [divided.numbers[index] for index in range(len(divided.rows))]
        try:
            return ItemResult(ticket=ticket, body=self._engine.unite(divided.item, divided.rows, numbers))
        except Exception as error:
            log.exception("ticket %d: its result could not be made", ticket)
            return ItemResult(ticket=ticket, error=describe(error))

    def _end(self, divided: _Divided, result: ItemResult) -> None:
        del self._divided[result.ticket]
        if len(divided.numbers) < len(divided.rows):
            own = range(divided.first, divided.first + len(divided.rows))
            self._batcher.drop({number for number in own if self._owners.pop(number, None) is not None})
        self._out.results.append(result)

    def stats(self) -> EngineStats:
        """Count batches as steps and rows as tokens, as for other batches; what was read are tokens of prompts."""
        return EngineStats(
            running=len(self._divided),
            waiting=len(self._arrived),
            steps=self._batches,
            tokens=self._rows,
            largest_batch=self._largest,
            prompt_tokens=self._tokens,
        )

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
