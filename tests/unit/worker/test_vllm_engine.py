"""The engine around vLLM's AsyncLLM, which a stand-in plays: it says what it is told to, when it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from support.engines import alone, ask, run
from support.stack import eventually
from zmqrt.worker.engines.adapters import Outbox, TokenAdapter
from zmqrt.worker.engines.base import (
    Capacity,
    EngineFatalError,
    EngineFullError,
    RequestRefusedError,
    SamplingParams,
    TokenEvent,
)
from zmqrt.worker.engines.ipc import Submit
from zmqrt.worker.engines.vllm_engine import StepLog, VllmEngine

VLLM: Any = SimpleNamespace(
    SamplingParams=SimpleNamespace,
    inputs=SimpleNamespace(tokens_input=list),
    sampling_params=SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta")),
)
SLOTS = 2


class EngineDeadError(Exception):
    """What vLLM raises when its processes have ended."""


def output(*ids: int, reason: str | None = None, logprobs: list[dict[int, float]] | None = None) -> Any:
    """Say what AsyncLLM yields."""
    said = [{token: SimpleNamespace(logprob=value) for token, value in each.items()} for each in logprobs or ()]
    one = SimpleNamespace(token_ids=list(ids), finish_reason=reason, logprobs=said or None)
    return SimpleNamespace(outputs=[one], num_cached_tokens=4)


class FakeAsyncLLM:
    """Adds one to the last token, again and again, as fast as `gate` lets it; the first token is a request's own."""

    def __init__(self, steps: StepLog) -> None:
        self.errored = False
        self.aborted: list[str] = []
        self.prompts: list[list[int]] = []
        self.steps = steps
        self.gate = threading.Event()
        self.gate.set()
        self.raises: Exception | None = None
        self.last: str | None = "length"

    async def generate(self, prompt: list[int], params: Any, request_id: str) -> AsyncIterator[Any]:
        """Yield a token a step."""
        self.prompts.append(prompt)
        token = prompt[-1]
        try:
            for left in reversed(range(params.max_tokens)):
                await asyncio.sleep(0)
                while not self.gate.is_set():
                    await asyncio.sleep(0.001)
                    if self.errored:
                        raise EngineDeadError
                if self.raises is not None:
                    raise self.raises
                token = (token + 1) % 1000
                self.steps.record(SimpleNamespace(num_running_reqs=1, num_waiting_reqs=0, kv_cache_usage=0.25))
                said = None if params.logprobs is None else [{token: -0.5}]
                yield output(token, reason=None if left else self.last, logprobs=said)
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise

    def shutdown(self, timeout: float) -> None:
        """Nothing to free."""


@pytest.fixture
def fake() -> list[FakeAsyncLLM]:
    """The stand-in, once it is made."""
    return []


@pytest.fixture
def engine(fake: list[FakeAsyncLLM]) -> Iterator[VllmEngine]:
    """An engine of two slots."""

    def make(steps: StepLog) -> FakeAsyncLLM:
        fake.append(FakeAsyncLLM(steps))
        return fake[0]

    engine = VllmEngine(
        VLLM,
        make,
        describe_capacity=lambda _client: Capacity(slots=SLOTS, context=64, kv_tokens=640),
        vocabulary=1000,
        has_keyed_noise=False,
        takes_seeds=True,
        revision="abc",
    )
    yield engine
    engine.close()


def polled(engine: VllmEngine, holds: Callable[[list[TokenEvent]], object]) -> list[TokenEvent]:
    """Poll until something holds of all events so far."""
    events: list[TokenEvent] = []

    def look() -> bool:
        events.extend(engine.poll(0.01))
        return bool(holds(events))

    eventually(look)
    return events


def test_requests_get_their_tokens_and_one_end_each(engine: VllmEngine) -> None:
    """Beside each other; and what was done is counted."""
    outcomes = run(engine, [ask(1, tokens=5, prompt_ids=[10]), ask(2, tokens=3, prompt_ids=[500])])

    assert outcomes[1].token_ids == [11, 12, 13, 14, 15]
    assert (outcomes[2].token_ids, outcomes[2].finish_reason) == ([501, 502, 503], "length")
    stats = engine.stats()
    assert (stats.tokens, stats.steps, stats.largest_batch, stats.kv_percent) == (8, 8, 2, 25)
    assert stats.reused_tokens == 8


def test_a_resumed_request_goes_on_behind_what_was_made(engine: VllmEngine, fake: list[FakeAsyncLLM]) -> None:
    """Prompt and resumed tokens are the prompt of vLLM, and the resumed ones are not reported again."""
    outcome = alone(engine, ask(1, tokens=5, prompt_ids=[10], resume_ids=[11, 12]))

    assert fake[0].prompts == [[10, 11, 12]]
    assert outcome.token_ids == [13, 14, 15]


def test_one_that_was_lost_after_its_last_token_ends_at_once(engine: VllmEngine, fake: list[FakeAsyncLLM]) -> None:
    """By length or by a stop id; vLLM hears nothing of it."""
    assert alone(engine, ask(1, tokens=2, resume_ids=[7, 8])).finish_reason == "length"
    assert alone(engine, ask(2, tokens=9, resume_ids=[7, 8], stop_ids=[8])).finish_reason == "stop"
    assert fake[0].prompts == []


def test_log_probabilities_are_reported_where_they_are_wanted(engine: VllmEngine) -> None:
    """One map for each token."""
    wanted = alone(engine, ask(1, tokens=2, prompt_ids=[10], sampling=SamplingParams(temperature=0.0, logprobs=1)))

    assert wanted.logprobs == [{11: -0.5}, {12: -0.5}]
    assert alone(engine, ask(2, tokens=2)).logprobs == []


def test_a_cancelled_request_ends_once_and_frees_its_slot(engine: VllmEngine, fake: list[FakeAsyncLLM]) -> None:
    """VLLM is told, and somebody else has the slot; a second cancel, or one of a stranger, is nothing."""
    fake[0].gate.clear()
    for ticket in (1, 2):
        engine.submit(ask(ticket))
    with pytest.raises(EngineFullError, match="all 2 slots"):
        engine.submit(ask(3))
    eventually(lambda: len(fake[0].prompts) == 2)
    for ticket in (1, 1, 77):
        engine.cancel(ticket)
    events = polled(engine, lambda events: events)

    assert [(event.ticket, event.finish_reason) for event in events] == [(1, "cancelled")]
    assert fake[0].aborted == ["1"]
    engine.submit(ask(3))
    fake[0].gate.set()
    ended = polled(engine, lambda events: sum(event.finish_reason is not None for event in events) == 2)
    assert {event.ticket: event.finish_reason for event in ended} == {2: "length", 3: "length"}


def test_what_can_never_run_is_refused(engine: VllmEngine) -> None:
    """With the numbers, and before vLLM sees it."""
    for request, words in [(ask(length=64), "the context is 64"), (ask(prompt_ids=[1000]), "ids from 0 to 999")]:
        with pytest.raises(RequestRefusedError, match=words):
            engine.submit(request)


def test_an_error_of_vllm_ends_its_request_alone(engine: VllmEngine, fake: list[FakeAsyncLLM]) -> None:
    """With the cause, which vLLM wraps."""
    fake[0].raises = RuntimeError("generate failed")
    fake[0].raises.__cause__ = ValueError("no such thing")
    outcome = alone(engine, ask(1))

    assert (outcome.finish_reason, outcome.error) == ("error", "ValueError: no such thing")
    fake[0].raises = None
    assert alone(engine, ask(2, tokens=2)).finish_reason == "length"


@pytest.mark.parametrize("has_work", [True, False])
def test_a_vllm_that_has_died_ends_the_engine(engine: VllmEngine, fake: list[FakeAsyncLLM], *, has_work: bool) -> None:
    """Its requests get no last word: they go on elsewhere."""
    if has_work:
        fake[0].gate.clear()
        engine.submit(ask(1))
        eventually(lambda: fake[0].prompts)
    fake[0].errored = True

    assert engine.is_busy
    with pytest.raises(EngineFatalError):
        polled(engine, lambda events: events)


def test_a_vllm_that_gives_a_request_up_by_itself_ends_the_engine(engine: VllmEngine, fake: list[FakeAsyncLLM]) -> None:
    """It does so when it is told to leave; the request is not over for that."""
    fake[0].last = "abort"
    engine.submit(ask(1, tokens=2, prompt_ids=[10]))
    seen: list[TokenEvent] = []

    with pytest.raises(EngineFatalError, match="given its requests up"):
        polled(engine, seen.extend)
    assert all(event.finish_reason is None for event in seen)


def test_a_long_prompt_comes_further_and_silence_betrays_a_step_that_is_never_done(
    engine: VllmEngine, fake: list[FakeAsyncLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps without a token are progress of the oldest prompt; no steps are none, and the engine is not alive."""
    monkeypatch.setattr("zmqrt.worker.engines.vllm_engine._TELL_EVERY_S", 0.0)
    monkeypatch.setattr("zmqrt.worker.engines.vllm_engine._STEP_S", 0.0)
    fake[0].gate.clear()
    assert engine.is_alive
    engine.submit(ask(1))
    engine.submit(ask(2))
    eventually(lambda: len(fake[0].prompts) == 2)
    assert not engine.is_alive

    engine._loop.call_soon_threadsafe(fake[0].steps.record, None)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    events = polled(engine, lambda events: events)
    assert events == [TokenEvent(ticket=1)]


def test_the_loop_is_woken_and_never_waits_in_a_poll(engine: VllmEngine, fake: list[FakeAsyncLLM]) -> None:
    """An adapter is busy only while there is something to take, so that what the agent sends is heard at once."""
    out, woken = Outbox(), threading.Event()
    adapter = TokenAdapter(engine, out, woken.set)
    fake[0].gate.clear()
    adapter.submit(Submit("", ask(1, tokens=1, prompt_ids=[10])))
    assert not adapter.is_busy

    fake[0].gate.set()
    assert woken.wait(30)
    eventually(lambda: adapter.is_busy)
    adapter.advance(1000.0)
    assert out.events == [TokenEvent(ticket=1, token_ids=[11], finish_reason="length")]
