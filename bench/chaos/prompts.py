"""What is asked, with the right answer known beforehand.

The right answer of the mock model is computed here, from its arithmetic, and never asked of an engine. That of a real
model is what an undisturbed fleet answered before anything was broken.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from zmqrt.client.calls import GenerateOptions
from zmqrt.client.sync import Client
from zmqrt.worker.engines import mock_tokens

_STREAM_TOKENS: Final = (60, 160)
"""Length of streamed mock answers: at 50 ms a step a stream lives for 3 to 8 s, long enough to be hit."""
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
class KnownPrompt:
    """A prompt whose right answer is known."""

    prompt: str | None
    options: GenerateOptions
    right_ids: Sequence[int]
    right_text: str


DrawPrompt = Callable[[random.Random, bool], KnownPrompt]
"""Draws the next prompt; the second argument says whether it will be streamed."""


def mock_prompts(model: str) -> DrawPrompt:
    """Draw prompts to the mock model, each one new: random bytes, a random length, greedy or drawn."""

    def draw(rng: random.Random, is_stream: bool) -> KnownPrompt:  # noqa: FBT001 - as `DrawPrompt` has it
        prompt_ids = [rng.randrange(256) for _ in range(rng.randint(1, _PROMPT_BYTES))]
        max_tokens = rng.randint(*(_STREAM_TOKENS if is_stream else _UNARY_TOKENS))
        seed, temperature = rng.randint(0, _MAX_SEED), rng.choice((0.0, 0.8))
        options = _options(model, max_tokens, seed, temperature)
        options["token_ids"] = prompt_ids
        ids = mock_tokens.expected_tokens(prompt_ids, max_tokens, seed=seed, temperature=temperature, ignore_eos=True)
        return KnownPrompt(None, options, ids, bytes(ids).decode("utf-8", "replace"))

    return draw


def learn(
    client: Client,
    model: str,
    *,
    max_tokens: int,
    rng: random.Random,
    tell: Callable[[str], None],
    go_on: Callable[[], bool],
) -> DrawPrompt | None:
    """Ask each prompt twice, greedy and drawn, while nothing is broken; None if `go_on` said to stop.

    `go_on` is called some times a second. Raises RequestError.
    """
    tries = [(prompt, temperature) for prompt in _PROMPTS for temperature in (0.0, 0.8)]
    learnt: list[KnownPrompt] = []
    for number, (prompt, temperature) in enumerate(tries, 1):
        tell(f"learning right answer {number} of {len(tries)} while nothing is broken")
        options = _options(model, max_tokens, rng.randint(0, _MAX_SEED), temperature)
        handle = client.submit(prompt, **options)
        while not handle.done():
            if not go_on():
                handle.cancel()
                return None
            with contextlib.suppress(TimeoutError):
                handle.result(_LOOK_S)
        result = handle.result()
        learnt.append(KnownPrompt(prompt, options, result.token_ids, result.text))
    return lambda drawn, _: drawn.choice(learnt)


def _options(model: str, max_tokens: int, seed: int, temperature: float) -> GenerateOptions:
    return {
        "max_tokens": max_tokens,
        "seed": seed,
        "temperature": temperature,
        "ignore_eos": True,
        "model": model,
    }
