"""A RowEngine as the loop of an engine process sees it: items are cut into rows, and batches made of rows.

It computes on the loop's own thread, one batch a pass, as an engine for tokens does: a batch is bounded in tokens, so
what arrives and what is cancelled meanwhile is heard after it. Rows of an item take turns with those of others.
"""

from __future__ import annotations

import itertools
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


@dataclass(slots=True)
class _Divided:
    """An item under way: its rows, and the numbers of those that are done."""

    item: Item
    rows: list[Row]
    numbers: dict[int, bytes] = field(default_factory=dict[int, bytes])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a row belongs."""

    item: _Divided
    index: int


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
        self._places: dict[int, _Place] = {}
        """Of rows that are not done, by the number that the batcher knows them by."""
        self._numbers = itertools.count(1)
        self._batches = self._largest = self._rows = self._tokens = 0

    @property
    def is_busy(self) -> bool:
        """Whether an item is to be divided, or a batch can be run."""
        return bool(self._arrived) or bool(self._places)

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
        """Divide what has arrived; else run one batch. Raises what breaks the engine."""
        if self._arrived:
            self._divide(self._arrived.popleft())
        if self._arrived:
            return
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
        divided = self._divided[item.ticket] = _Divided(item, rows)
        now, turn = self._clock(), self._batcher.turn
        for index, row in enumerate(rows):
            number = next(self._numbers)
            self._places[number] = _Place(divided, index)
            self._batcher.add(Item(ticket=number, task={}, length=len(row.token_ids)), now, turn + index)

    def _run(self, batch: list[Item]) -> None:
        places = [self._places[row.ticket] for row in batch]
        rows = [place.item.rows[place.index] for place in places]
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
        self._tokens += sum(len(row.token_ids) for row in rows)
        for row, outcome in zip(batch, outcomes, strict=True):
            self._take(row.ticket, outcome)

    def _take(self, number: int, outcome: bytes | Exception) -> None:
        """Take a row's outcome in: the item ends with its last row, or with the first that fails."""
        place = self._places.pop(number, None)
        if place is None:
            return  # another row of its item has failed in this batch
        divided = place.item
        if isinstance(outcome, Exception):
            self._end(divided, ItemResult(ticket=divided.item.ticket, error=describe(outcome)))
            return
        divided.numbers[place.index] = outcome
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
            left = {number for number, place in self._places.items() if place.item is divided}
            self._batcher.drop(left)
            for number in left:
                del self._places[number]
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
