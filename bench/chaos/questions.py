"""What is asked, with the right answer known beforehand.

Of the toy model the right answer is computed here, from its arithmetic, and never asked of an engine. Of a real model
it is what an undisturbed fleet answered before anything was broken.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from zmqrt.client.calls import GenerateOptions
from zmqrt.client.sync import Client
from zmqrt.worker.engines import mock_tokens

_STREAM_TOKENS: Final = (60, 160)
"""Length of streamed toy answers: at 50 ms a step a stream lives for 3 to 8 s, long enough to be hit."""
_UNARY_TOKENS: Final = (5, 40)
"""A unary answer begins anew when its broker is lost, so one of many seconds may never get done in time."""
_PROMPT_BYTES: Final = 40
_PROMPTS: Final = (
    "Write a short story about a lighthouse.",
    "Explain how bread is made.",
    "List the planets and say something about each.",
    "Tell me about the history of bicycles.",
)
_LOOK_S: Final = 0.1
_MAX_SEED: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Question:
    """One request and its right answer."""

    prompt: str | None
    options: GenerateOptions
    right_ids: Sequence[int]
    right_text: str


class Source(Protocol):
    """Where questions come from."""

    def draw(self, rng: random.Random, *, is_stream: bool) -> Question:
        """Return the next one."""
        ...


class ToyQuestions:
    """Questions to the toy model: every one is new."""

    def __init__(self, model: str) -> None:
        self._model = model

    def draw(self, rng: random.Random, *, is_stream: bool) -> Question:
        """Make one: random bytes, a random length, greedy or drawn."""
        prompt_ids = [rng.randrange(256) for _ in range(rng.randint(1, _PROMPT_BYTES))]
        max_tokens = rng.randint(*(_STREAM_TOKENS if is_stream else _UNARY_TOKENS))
        seed, temperature = rng.randint(0, _MAX_SEED), rng.choice((0.0, 0.8))
        options: GenerateOptions = {
            "token_ids": prompt_ids,
            "max_tokens": max_tokens,
            "seed": seed,
            "temperature": temperature,
            "ignore_eos": True,
            "model": self._model,
        }
        ids = mock_tokens.expected_tokens(prompt_ids, max_tokens, seed=seed, temperature=temperature, ignore_eos=True)
        return Question(None, options, ids, bytes(ids).decode("utf-8", "replace"))


class LearntQuestions:
    """Questions to any other model: a few, each asked once while nothing is broken."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions

    def draw(self, rng: random.Random, *, is_stream: bool) -> Question:  # noqa: ARG002 - they have one length
        """Return one of them."""
        return rng.choice(self._questions)


def learn(
    client: Client,
    model: str,
    *,
    max_tokens: int,
    rng: random.Random,
    tell: Callable[[str], None],
    go_on: Callable[[], bool],
) -> LearntQuestions | None:
    """Ask each prompt twice, greedy and drawn, one after the other; None if `go_on` said to stop. Raises RequestError.

    `go_on` is called some times a second.
    """
    plans = [(prompt, temperature) for prompt in _PROMPTS for temperature in (0.0, 0.8)]
    learnt: list[Question] = []
    for number, (prompt, temperature) in enumerate(plans, 1):
        tell(f"learning right answer {number} of {len(plans)} while nothing is broken")
        options: GenerateOptions = {
            "max_tokens": max_tokens,
            "seed": rng.randint(0, _MAX_SEED),
            "temperature": temperature,
            "ignore_eos": True,
            "model": model,
        }
        handle = client.submit(prompt, **options)
        while not handle.done():
            if not go_on():
                handle.cancel()
                return None
            with contextlib.suppress(TimeoutError):
                handle.result(_LOOK_S)
        result = handle.result()
        learnt.append(Question(prompt, options, result.token_ids, result.text))
    return LearntQuestions(learnt)
