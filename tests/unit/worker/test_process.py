"""An engine process: what it loads, and how long its loop waits when there is nothing to do."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from support.engine_fleet import spec
from zmqrt.protocol import messages as m
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.adapters import EngineAdapter, Outbox
from zmqrt.worker.engines.base import CannotLoadError, Capacity, EngineStats, Item, ItemResult, TokenEvent
from zmqrt.worker.engines.channel import Channel, WakePipe, make_channel
from zmqrt.worker.engines.mock import MockEngine
from zmqrt.worker.engines.mock_batches import MockBatches, MockEmbedder, MockReranker
from zmqrt.worker.engines.process import EngineLoop, capabilities_of, describe_service, make_adapter


class Still:
    """An adapter that has nothing to do and does not move, as one with a batch that takes too long."""

    is_busy = is_alive = False

    def stats(self) -> EngineStats:
        """None kept."""
        return EngineStats()

    def close(self) -> None:
        """Nothing to free."""


@pytest.mark.parametrize("is_alive", [True, False])
def test_an_idle_loop_waits_whether_it_shows_itself_or_not(monkeypatch: pytest.MonkeyPatch, *, is_alive: bool) -> None:
    """No sign of life goes out for one that does not move, and that is no reason to look at it all the time."""
    now, waits = 100.0, list[int]()
    channel, its_end = make_channel()
    agent = Channel(its_end)

    class Poll:
        def register(self, *_: object) -> None:
            """Watch it."""

        def poll(self, milliseconds: int) -> None:
            """Let that time pass; the agent ends it after some rounds."""
            nonlocal now
            waits.append(milliseconds)
            now += milliseconds / 1000
            if len(waits) == 6:
                agent.send(ipc.encode([ipc.Stop()]))

    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    still: Any = Still()
    still.is_alive = is_alive
    loop = EngineLoop(channel, {"": cast("EngineAdapter", still)}, Outbox(), wakeups=WakePipe())
    loop.run()

    assert len(waits) == 6
    assert min(waits) >= 199
    assert len(agent.receive()) == (6 if is_alive else 0)
    loop.close()
    agent.close()
    channel.close()


class Steady(Still):
    """An adapter that makes a token in each step, or (`is_busy` False) nothing; it counts how often it is asked."""

    is_alive = True

    def __init__(self, out: Outbox, after_step: Callable[[], None] | None) -> None:
        self._out = out
        self._after_step = after_step
        self.is_busy = after_step is not None
        self.asked = 0

    def advance(self, _timeout_s: float) -> None:
        """Make one."""
        assert self._after_step is not None
        self._out.events.append(TokenEvent(ticket=1, token_ids=[7]))
        self._after_step()

    def stats(self) -> EngineStats:
        """Count the question."""
        self.asked += 1
        return EngineStats(steps=self.asked)


def test_a_step_tells_the_counters_of_who_took_part_and_now_and_then_those_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counters of a step come with it; to ask all services each time took as long as several tokens."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    channel, its_end = make_channel()
    agent, out = Channel(its_end), Outbox()

    def after_step() -> None:
        nonlocal now
        now += 0.06
        if busy.asked == 7:
            agent.send(ipc.encode([ipc.Stop()]))

    busy, idle = Steady(out, after_step), Steady(out, None)
    adapters: Any = {"": busy, "embed": idle}
    loop = EngineLoop(channel, adapters, out, wakeups=WakePipe())
    loop.run()
    reports = [one for data in agent.receive() for one in ipc.decode_from_engine(data)]

    told = [sorted(one.stats) for one in reports if isinstance(one, ipc.StepReport)]
    assert told == [["", "embed"], [""], [""], [""], ["", "embed"], [""], [""], [""], ["", "embed"]]
    loop.close()
    agent.close()
    channel.close()


def test_an_engine_process_loads_only_what_its_engine_needs() -> None:
    """A node starts one for each device, and again for each that breaks: what is loaded for nothing delays them all."""
    code = "import sys, zmqrt.worker.engines.process, zmqrt.worker.engines.mock; print(sorted(NAMES & {*sys.modules}))"
    names = "NAMES = {'asyncio', 'importlib.metadata', 'numpy', 'torch', 'zmq'}"
    result = subprocess.run([sys.executable, "-c", f"{names}; {code}"], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"


class Judge:
    """A BatchEngine that may say what it does."""

    def __init__(self, task: str | None) -> None:
        if task is not None:
            self.task = task

    def run(self, items: list[Item]) -> list[ItemResult]:
        """Answer nothing of use."""
        return [ItemResult(ticket=item.ticket, body={}) for item in items]

    def capacity(self) -> Capacity:
        """One at a time."""
        return Capacity(slots=1, context=8)

    def close(self) -> None:
        """Nothing to free."""


@pytest.mark.parametrize(("said", "task"), [(None, "embed"), ("rerank", "rerank"), ("classify", "classify")])
def test_an_engine_of_batches_says_its_task(said: str | None, task: str) -> None:
    """One from before there were others embeds."""
    engine = Judge(said)
    adapter = make_adapter(engine, spec(), Outbox(), lambda: None)

    assert describe_service("", adapter, engine, spec()).task == task
    adapter.close()


def test_a_name_that_no_broker_takes_is_shortened_and_still_its_own() -> None:
    """A broker drops the whole READY of a node with one: `vllm serve` calls a model by the path of its snapshot."""
    names: set[tuple[str, str]] = set()
    for end in ("a", "b"):
        engine = Judge(None)
        vars(engine).update(model="/" + "x" * 150 + end, revision="openai-/" + "x" * 150 + end)
        adapter = make_adapter(engine, spec(), Outbox(), lambda: None)
        said = describe_service("", adapter, engine, spec())
        names.add((said.model, said.revision))
        offer = m.ServiceOffer("s", 1, "embed", said.model, said.revision)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(offer), type=m.ServiceOffer) == offer

    assert len({model for model, _ in names}) == len({revision for _, revision in names}) == 2


def test_a_task_that_does_not_exist_is_no_reason_to_start_again() -> None:
    """The node says what there is."""
    engine = Judge("sing")
    adapter = make_adapter(engine, spec(), Outbox(), lambda: None)

    with pytest.raises(CannotLoadError, match="'sing'; there are generate, embed, rerank, classify"):
        describe_service("", adapter, engine, spec())
    adapter.close()


class Said:
    """An engine that serves nothing, and says what it can do."""

    def __init__(self, said: object) -> None:
        self.capabilities = said

    def capacity(self) -> Capacity:
        """One at a time."""
        return Capacity(slots=1, context=1)


@pytest.mark.parametrize(
    ("engine", "capabilities"),
    [
        (MockEngine(slots=1, context=8), ["grammar", "logprobs", "token_ids", "tools"]),
        (Said(["tools", "logprobs"]), ["logprobs", "tools"]),
        (Said(frozenset[str]()), []),
        (Said(None), []),
        (MockEmbedder("m", MockBatches(context=8)), ["token_ids"]),
        (MockReranker("m", MockBatches(context=8)), []),
    ],
)
def test_an_engine_says_what_it_can_do_or_what_its_protocol_can(engine: Any, capabilities: list[str]) -> None:
    """A TokenEngine deals in token ids and knows their probabilities; one that deals in text does not."""
    assert capabilities_of(engine) == capabilities


@pytest.mark.parametrize("said", ["logprobs", 7, ["not a name"], [""], [f"c{n}" for n in range(40)]])
def test_capabilities_that_no_broker_would_take_are_refused_while_loading(said: object) -> None:
    """Else its node would be turned away by each of them, for a malformed message."""
    with pytest.raises(CannotLoadError, match=r"Said\.capabilities is no list of names"):
        capabilities_of(cast("Any", Said(said)))
