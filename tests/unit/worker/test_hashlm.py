"""The mock engine: right tokens whatever happens around them, and wrong ones as soon as the scheduler errs."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqrt.protocol.toy_model import EOS, expected_tokens
from zmqrt.worker.engines import hashlm
from zmqrt.worker.engines.base import (
    EngineFullError,
    EngineSpec,
    Item,
    RequestRefusedError,
    Sampling,
    TokenEngine,
    TokenEvent,
    TokenRequest,
)
from zmqrt.worker.engines.hashlm import Faults, HashEmbed, HashLM, Pace, Row

AT_ONCE = Pace(step_ms=0)


class Ticks:
    """A clock that moves half a step with each look, so that things happen in the middle of steps."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Look."""
        self._now += 0.0005
        return self._now


def request(ticket: int, prompt: list[int], n: int, *, seed: int = 0, resume: list[int] | None = None) -> TokenRequest:
    """Build a sampled request."""
    return TokenRequest(
        ticket=ticket,
        prompt_ids=prompt,
        resume_ids=resume or [],
        max_new_tokens=n,
        sampling=Sampling(seed=seed, temperature=1.0),
    )


class Schedule:
    """Random arrivals, cancels and steps, each outcome compared with the model computed from scratch."""

    def __init__(self, engine: HashLM, seed: int) -> None:
        self.engine = engine
        self.rng = random.Random(seed)
        self.expected: dict[int, list[int]] = {}
        self.made: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}

    def run(self, actions: int) -> None:
        """Do so many random things, then finish what is left."""
        for _ in range(actions):
            self.rng.choice([self.arrive, self.cancel, self.step, self.step])()
        for _ in range(2000):
            if len(self.reasons) == len(self.expected):
                return
            self.step()
        raise AssertionError("requests were left without an end")

    def arrive(self) -> None:
        """Submit, sometimes as the resume of a request that was cut somewhere."""
        ticket = len(self.expected) + 1
        prompt = [self.rng.randrange(256) for _ in range(self.rng.randint(1, 8))]
        count, seed = self.rng.randint(1, 30), self.rng.randrange(5)
        whole = expected_tokens(prompt, count, seed=seed, temperature=1.0)
        cut = self.rng.randrange(len(whole)) if self.rng.random() < 0.4 else 0
        try:
            self.engine.submit(request(ticket, prompt, count, seed=seed, resume=whole[:cut]))
        except EngineFullError:
            return
        self.expected[ticket] = whole
        self.made[ticket] = whole[:cut]

    def cancel(self) -> None:
        """Cancel something, running, over or unknown."""
        self.engine.cancel(self.rng.randint(1, len(self.expected) + 1))

    def step(self) -> None:
        """Poll once and check what comes."""
        for event in self.engine.poll(0):
            self.check(event)

    def check(self, event: TokenEvent) -> None:
        """Compare: a prefix of the right answer at any time, all of it at the end."""
        assert event.ticket not in self.reasons, "an event after the end"
        self.made[event.ticket] += event.token_ids
        right = self.expected[event.ticket]
        assert self.made[event.ticket] == right[: len(self.made[event.ticket])]
        if event.finish_reason is not None:
            self.reasons[event.ticket] = event.finish_reason
            if event.finish_reason != "cancelled":
                assert self.made[event.ticket] == right
                assert (event.finish_reason == "stop") == (right[-1] == EOS)


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_schedule_gives_the_right_tokens(seed: int) -> None:
    """Arrivals, cancels and resumes in any order: each request's tokens are its own, and each ends once."""
    engine = HashLM(slots=3, clock=Ticks())

    Schedule(engine, seed).run(150)

    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


class ReusesEarly(HashLM):
    """A slot is free again while its last step still runs."""

    def cancel(self, ticket: int) -> None:
        """Free the slot at once."""
        row = self._rows.get(ticket)
        super().cancel(ticket)
        if row is not None and row.slot not in self._free:
            self._free.append(row.slot)


class ReadsStaleRow(HashLM):
    """The slot table is one row off as soon as there are two."""

    def _advance(self, row: Row) -> TokenEvent:
        other = next((r for r in self._rows.values() if r is not row and r.length >= row.length), row)
        return super()._advance(Row(row.request, other.slot, row.noise, row.length, row.made))


class ForgetsThePrefix(HashLM):
    """A resumed request starts without what it had."""

    def submit(self, request: TokenRequest) -> None:
        """Drop the prefix."""
        super().submit(msgspec.structs.replace(request, resume_ids=[]))


@pytest.mark.parametrize("mutant", [ReusesEarly, ReadsStaleRow, ForgetsThePrefix])
def test_planted_bugs_are_caught(mutant: type[HashLM]) -> None:
    """Each mutant fails within a few schedules: the test above can fail."""
    caught = 0
    for seed in range(20):
        try:
            Schedule(mutant(slots=3, clock=Ticks()), seed).run(150)
        except (AssertionError, KeyError, IndexError):
            caught += 1

    assert caught > 0


def test_greedy_ignores_the_seed_and_sampling_does_not() -> None:
    """Temperature 0 has one answer; seeds differ otherwise."""
    prompt = list(b"hello")

    assert expected_tokens(prompt, 20, seed=1) == expected_tokens(prompt, 20, seed=2)
    assert expected_tokens(prompt, 20, seed=1, temperature=1) != expected_tokens(prompt, 20, seed=2, temperature=1)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(0, 2**63 - 1))
def test_what_it_writes_is_text(prompt: list[int], seed: int) -> None:
    """Its bytes are UTF-8 after any prompt that ends with a whole character, half characters at the end aside."""
    made = expected_tokens([*prompt, ord(".")], 40, seed=seed, temperature=1.0, ignore_eos=True)

    assert "�" not in bytes(made).decode("utf-8", "ignore")
    assert len(bytes(made).decode("utf-8", "ignore").encode()) >= len(made) - 3


def test_full_and_impossible_are_told_apart() -> None:
    """A full queue may be tried again; a prompt as long as the context never."""
    engine = HashLM(slots=1, context=8, pace=AT_ONCE)
    engine.submit(request(1, [1], 4))

    with pytest.raises(EngineFullError):
        engine.submit(request(2, [1], 4))
    for length in (0, 8, 16):
        with pytest.raises(RequestRefusedError, match="context of 8"):
            engine.submit(request(3, [1] * length, 4))


def test_a_prompt_may_be_told_to_fail() -> None:
    """That request alone ends with an error."""
    engine = HashLM(slots=2, pace=AT_ONCE, faults=Faults(fail="boom"))
    engine.submit(request(1, list(b"boom"), 4))
    engine.submit(request(2, list(b"fine"), 1))

    events = {event.ticket: event for event in engine.poll(0)}

    assert events[1].finish_reason == "error"
    assert events[2].finish_reason in {"length", "stop"}


def spec(**options: str) -> EngineSpec:
    """Build a spec as the supervisor would."""
    return EngineSpec(
        engine="mock",
        model="mock",
        model_path="",
        device="mock:0",
        dtype="auto",
        max_model_len=0,
        batch_max_size=8,
        batch_max_latency_ms=50,
        slots=0,
        options=options,
    )


def test_the_factory_reports_progress_and_refuses_unknown_options() -> None:
    """Two services, progress up to 100, and a misspelt option is an error that lists the right ones."""
    seen: list[float] = []

    made = hashlm.factory(spec(slots="5"), lambda _, percent: seen.append(percent))

    assert isinstance(made[""], TokenEngine)
    assert made[""].capacity().slots == 5
    assert seen[-1] == 100
    with pytest.raises(ValueError, match="step_ms"):
        hashlm.factory(spec(stepms="5"), lambda _, __: None)


def test_vectors_are_unit_and_depend_on_the_text_alone() -> None:
    """The same text has the same vector in any batch."""
    engine = HashEmbed(model="m", dim=8, batch=8, step_s=0)

    alone = engine.run([Item(ticket=1, task={"input": "a"}, length=1)])[0].body
    beside = engine.run([Item(ticket=1, task={"input": ["b", "a"]}, length=1)])[0].body

    assert alone is not None
    assert beside is not None
    assert beside["vectors"]["data"].endswith(alone["vectors"]["data"])
    assert beside["vectors"]["shape"] == [2, 8]
