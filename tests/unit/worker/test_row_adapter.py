"""Rows of several items make full batches, take turns, and fail alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from zmqrt.worker.engines.adapters import Outbox
from zmqrt.worker.engines.base import (
    Capacity,
    EngineFatalError,
    EngineSpec,
    Item,
    ItemResult,
    Row,
    SamplingParams,
    TaskName,
    TokenRequest,
)
from zmqrt.worker.engines.batcher import Batcher, within_a_quarter
from zmqrt.worker.engines.ipc import Refused, Submit, SubmitTask
from zmqrt.worker.engines.process import describe_service, make_adapter
from zmqrt.worker.engines.row_adapter import RowAdapter

SAMPLING = SamplingParams()


@dataclass
class Counting:
    """Answers each row with its first token; some tokens are faults. `seen` are the first tokens of each batch."""

    batch_tokens: int = 1024
    slots: int = 4
    task: TaskName = "embed"
    seen: list[list[int]] = field(default_factory=list[list[int]])

    def divide(self, item: Item) -> list[Row] | ItemResult:
        """A row for each number of the task, `length` tokens long."""
        if "refuse" in item.task:
            return ItemResult(ticket=item.ticket, error="no", refused="bad_request")
        return [Row([number] * item.task.get("length", 5)) for number in item.task["numbers"]]

    def run(self, rows: list[Row]) -> list[bytes | Exception]:
        """13 breaks the batch, 14 its row, 15 the engine."""
        first = [row.token_ids[0] for row in rows]
        self.seen.append(first)
        if 15 in first:
            raise EngineFatalError("broken")
        if 13 in first:
            raise ValueError("thirteen")
        return [ValueError("fourteen") if number == 14 else bytes([number]) for number in first]

    def unite(self, item: Item, rows: list[Row], numbers: list[bytes]) -> dict[str, Any]:
        """All numbers, in their order; 99 cannot be said."""
        if b"\x63" in numbers:
            raise KeyError("ninety-nine")
        return {"numbers": list(b"".join(numbers)), "rows": len(rows)}

    def capacity(self) -> Capacity:
        """Four items."""
        return Capacity(slots=self.slots, context=100)

    def close(self) -> None:
        """Nothing to free."""


class Bench:
    """An engine, its adapter, and what came out."""

    def __init__(self, *, max_size: int = 4, batch_tokens: int = 1024, slots: int = 4, tick_s: float = 0.0) -> None:
        self.engine = Counting(batch_tokens, slots)
        self.out = Outbox()
        clock = itertools.count(0.0, tick_s)
        batcher = Batcher(
            max_size=max_size, max_latency_s=1.0, max_tokens=self.engine.batch_tokens, pad=within_a_quarter
        )
        self.adapter = RowAdapter(self.engine, self.out, batcher, lambda: next(clock))
        self._tickets = itertools.count(1)

    def submit(self, *numbers: int, **fields: object) -> int:
        """Submit an item; return its ticket."""
        ticket = next(self._tickets)
        self.adapter.submit(SubmitTask("", ticket, {"numbers": list(numbers), **fields}, 10))
        return ticket

    def passes(self, count: int) -> None:
        """Let the loop go round."""
        for _ in range(count):
            self.adapter.advance(0.0)

    def finish(self) -> dict[int, ItemResult]:
        """Let it go round until nothing is left."""
        for _ in range(1000):
            if not self.adapter.is_busy:
                return {result.ticket: result for result in self.out.results}
            self.adapter.advance(0.0)
        raise AssertionError("it never ends")


def test_a_lone_item_waits_two_passes_and_no_time() -> None:
    """One to be divided, with a look whether more is coming, and one to run."""
    bench = Bench()
    ticket = bench.submit(1, 2)

    bench.passes(2)

    assert bench.out.results == [ItemResult(ticket=ticket, body={"numbers": [1, 2], "rows": 2})]
    assert not bench.adapter.is_busy


def test_rows_of_several_items_fill_batches() -> None:
    """Whosever they are; each item has its own in its order."""
    bench = Bench()
    tickets = [bench.submit(1, 2, 3), bench.submit(4), bench.submit(5, 6, 7)]

    found = bench.finish()

    assert sorted(map(len, bench.engine.seen)) == [3, 4]
    assert [found[ticket].body for ticket in tickets] == [
        {"numbers": [1, 2, 3], "rows": 3},
        {"numbers": [4], "rows": 1},
        {"numbers": [5, 6, 7], "rows": 3},
    ]
    assert bench.adapter.stats().largest_batch == 4
    assert bench.adapter.stats().prompt_tokens == 35


def test_a_small_item_does_not_wait_for_all_of_a_large_one() -> None:
    """It takes the next turn."""
    bench = Bench()
    bench.submit(*range(20, 60))
    bench.passes(3)
    small = bench.submit(1)

    bench.passes(1)

    assert [result.ticket for result in bench.out.results] == [small]
    assert bench.engine.seen[3][0] == 1
    assert bench.finish()[1].body == {"numbers": list(range(20, 60)), "rows": 40}


def test_of_equal_items_the_first_is_done_first() -> None:
    """And not all of them at the end."""
    bench = Bench(slots=64)
    tickets = [bench.submit(*range(20, 36)) for _ in range(64)]

    bench.passes(4)

    assert [result.ticket for result in bench.out.results] == tickets[:1]
    bench.finish()
    assert [result.ticket for result in bench.out.results] == tickets


def test_a_large_item_is_not_passed_for_ever() -> None:
    """However many small ones keep coming: those that come late enough are done after it."""
    bench = Bench(slots=8)
    large = bench.submit(*range(20, 28))
    for _ in range(100):
        stats = bench.adapter.stats()
        for _ in range(8 - stats.running - stats.waiting):
            bench.submit(1, 2, 3, 4)
        bench.passes(1)

    assert large in [result.ticket for result in bench.out.results]


def test_what_is_under_way_does_not_wait_until_all_that_arrives_is_divided() -> None:
    """Batches go on between items that take long to be cut into rows."""
    bench = Bench(slots=64, tick_s=0.03)
    for _ in range(20):
        bench.submit(1, 2, 3, 4)

    bench.passes(3)

    assert bench.adapter.stats().steps == 3
    assert bench.adapter.stats().waiting > 10


def test_a_batch_has_no_more_tokens_than_is_allowed() -> None:
    """Padding counted; what is longer by itself goes alone."""
    bench = Bench(batch_tokens=64)
    bench.submit(*range(6), length=30)
    bench.submit(9, length=90)

    bench.finish()

    assert sorted(map(len, bench.engine.seen)) == [1, 2, 2, 2]


def test_only_the_item_of_a_bad_row_fails() -> None:
    """A batch that raises is halved until the row is alone; one that says what is wrong with a row is not."""
    bench = Bench()
    tickets = [bench.submit(1, 13, 2), bench.submit(3), bench.submit(4), bench.submit(5, 14)]

    found = bench.finish()

    assert [found[ticket].error for ticket in tickets] == ["ValueError: thirteen", None, None, "ValueError: fourteen"]
    assert [found[ticket].body for ticket in tickets[1:3]] == [{"numbers": [3], "rows": 1}, {"numbers": [4], "rows": 1}]


def test_a_result_that_cannot_be_made_is_the_items_fault() -> None:
    """Nobody else's."""
    bench = Bench()
    tickets = [bench.submit(99), bench.submit(1)]

    found = bench.finish()

    assert [found[ticket].error for ticket in tickets] == ["KeyError: 'ninety-nine'", None]


def test_what_is_refused_or_makes_no_rows_never_runs() -> None:
    """It is told at once."""
    bench = Bench()
    tickets = [bench.submit(1, refuse=True), bench.submit()]

    found = bench.finish()

    assert found[tickets[0]] == ItemResult(ticket=tickets[0], error="no", refused="bad_request")
    assert found[tickets[1]].error == "ValueError: the engine made no rows of it"
    assert bench.engine.seen == []


def test_a_cancelled_item_frees_its_place_and_its_rows() -> None:
    """Before it is divided, and half-way; twice is once."""
    bench = Bench(slots=2)
    bench.submit(*range(20, 40))
    bench.passes(3)
    second = bench.submit(1)
    for ticket in (1, second, second, 77):
        bench.adapter.cancel(ticket)
    third, before = bench.submit(2), len(bench.engine.seen)

    found = bench.finish()

    assert [found[ticket].error for ticket in (1, second)] == ["cancelled", "cancelled"]
    assert found[third].body == {"numbers": [2], "rows": 1}
    assert bench.engine.seen[before:] == [[2]]
    assert len(bench.out.results) == 3


def test_more_than_it_holds_are_sent_back() -> None:
    """And what is no task."""
    bench = Bench(slots=1)
    bench.submit(1)
    bench.submit(2)
    bench.adapter.submit(Submit("", TokenRequest(ticket=9, prompt_ids=[1], max_new_tokens=1, sampling=SAMPLING)))

    assert bench.out.messages == [
        Refused(2, full=True, error="all 1 places are taken"),
        Refused(9, full=False, error="this service takes whole tasks"),
    ]


def test_an_engine_that_is_broken_for_good_says_so() -> None:
    """Its process ends."""
    bench = Bench()
    bench.submit(15)

    with pytest.raises(EngineFatalError):
        bench.finish()


def test_an_engine_process_takes_it_for_what_it_is() -> None:
    """It has the methods of a BatchEngine too."""
    spec = EngineSpec(
        engine="own",
        model="m",
        model_path="",
        device="cpu",
        dtype="auto",
        max_model_len=0,
        batch_max_size=8,
        batch_max_latency_ms=50,
        slots=0,
    )
    engine = Counting()
    adapter = make_adapter(engine, spec, Outbox(), lambda: None)

    service = describe_service("", adapter, engine, spec)

    assert isinstance(adapter, RowAdapter)
    assert (service.kind, service.task) == ("batch", "embed")
