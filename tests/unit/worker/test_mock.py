"""The mock: a toy model that tests can compute by themselves, faults on demand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.engine_fleet import spec
from zmqrt.worker.engines import mock
from zmqrt.worker.engines.base import (
    EngineFullError,
    RequestRefusedError,
    SamplingParams,
    TokenEngine,
    TokenRequest,
)
from zmqrt.worker.engines.mock import MockEngine, MockFaults, MockTiming
from zmqrt.worker.engines.mock_tokens import expected_tokens

AT_ONCE = MockTiming(step_ms=0)


def request(ticket: int, prompt: list[int], n: int, *, seed: int = 0) -> TokenRequest:
    """Build a sampled request."""
    return TokenRequest(
        ticket=ticket, prompt_ids=prompt, max_new_tokens=n, sampling=SamplingParams(seed=seed, temperature=1.0)
    )


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
    engine = MockEngine(slots=1, context=8, timing=AT_ONCE)
    engine.submit(request(1, [1], 4))

    with pytest.raises(EngineFullError):
        engine.submit(request(2, [1], 4))
    for length, words in ((0, "prompt_ids is empty"), (8, "8 tokens, the context is 8"), (16, "16 tokens")):
        with pytest.raises(RequestRefusedError, match=words):
            engine.submit(request(3, [1] * length, 4))


def test_a_prompt_may_be_told_to_fail() -> None:
    """That request alone ends with an error."""
    engine = MockEngine(slots=2, timing=AT_ONCE, faults=MockFaults(fail="boom"))
    engine.submit(request(1, list(b"boom"), 4))
    engine.submit(request(2, list(b"fine"), 1))

    events = {event.ticket: event for event in engine.poll(0)}

    assert events[1].finish_reason == "error"
    assert events[2].finish_reason in {"length", "stop"}


def test_the_factory_reports_progress_and_refuses_unknown_options() -> None:
    """Four services, progress up to 100, and a misspelt option is an error that lists the right ones."""
    seen: list[float] = []

    made = mock.factory(spec(slots="5"), lambda _, percent: seen.append(percent))

    assert isinstance(made[""], TokenEngine)
    assert made[""].capacity().slots == 5
    assert {getattr(engine, "task", "generate") for engine in made.values()} == {
        "generate",
        "embed",
        "rerank",
        "classify",
    }
    assert seen[-1] == 100
    with pytest.raises(ValueError, match="step_ms"):
        mock.factory(spec(stepms="5"), lambda _, __: None)
