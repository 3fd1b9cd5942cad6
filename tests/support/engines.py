"""Run requests on a token engine until all have ended."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from support.reference_sampling import choose, token_words
from zmqrt.worker.engines.base import EngineSpec, FinishReason, SamplingParams, TokenEngine, TokenRequest
from zmqrt.worker.engines.sampling_state import SamplingState

MAX_POLLS = 5000
"""A test that polls so often hangs."""


@dataclass
class Outcome:
    """All that one request got."""

    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[dict[int, float]] = field(default_factory=list[dict[int, float]])
    finish_reason: FinishReason | None = None
    error: str | None = None


def run(engine: TokenEngine, requests: Sequence[TokenRequest]) -> dict[int, Outcome]:
    """Submit all, poll until each has had its terminal event, and check that none has two."""
    outcomes = {request.ticket: Outcome() for request in requests}
    for request in requests:
        engine.submit(request)
    for _ in range(MAX_POLLS):
        if all(outcome.finish_reason for outcome in outcomes.values()):
            return outcomes
        for event in engine.poll(0.01):
            outcome = outcomes[event.ticket]
            assert outcome.finish_reason is None, f"{event} came after the end"
            outcome.token_ids += event.token_ids
            outcome.logprobs += event.logprobs or []
            outcome.finish_reason, outcome.error = event.finish_reason, event.error
    raise AssertionError(f"not ended after {MAX_POLLS} polls: {outcomes}")


def tokens_of(engine: TokenEngine, requests: Sequence[TokenRequest]) -> dict[int, list[int]]:
    """Run all at once; return the tokens alone."""
    return {ticket: outcome.token_ids for ticket, outcome in run(engine, requests).items()}


def describe(folder: Path, *, options: dict[str, str] | None = None, **fields: Any) -> EngineSpec:
    """Describe a `generate` engine on the CPU; `fields` are those of EngineSpec."""
    plain = EngineSpec(
        engine="generate",
        model="tiny-random",
        model_path=str(folder),
        device="cpu",
        dtype="auto",
        max_model_len=512,
        batch_max_size=8,
        batch_max_latency_ms=50,
        slots=8,
        options=options or {},
    )
    return msgspec.structs.replace(plain, **fields)


def as_transformers(folder: Path) -> Any:
    """Load a model as transformers does, in float32; nothing ends what it generates."""
    import torch

    from zmqrt.worker.engines.generate.hf_loader import untyped

    model: Any = untyped("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


def generated(model: Any, request: TokenRequest) -> list[int]:
    """Return what transformers' own `generate` adds to a prompt, greedily."""
    import torch

    ids = torch.tensor([request.prompt_ids])
    asked = {"max_new_tokens": request.max_new_tokens, "do_sample": False}
    output: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), **asked)[0].tolist()
    return output[len(request.prompt_ids) :]


def drawn_one_by_one(oracle: Any, request: TokenRequest) -> list[int]:
    """Draw as the reference says from what transformers computes of the whole text, anew for each token."""
    import torch

    state, ids = SamplingState.of(request, request.stop_ids), list(request.prompt_ids)
    words = token_words(int(oracle.config.vocab_size))
    with torch.inference_mode():
        for _ in range(request.max_new_tokens):
            logits = oracle(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(choose(logits.numpy(), state, words))
            state.take(ids[-1])
    return ids[len(request.prompt_ids) :]


def requests_of_all_kinds(count: int, *, vocabulary: int, tokens: int) -> list[TokenRequest]:
    """Make greedy, sampled, limited and penalised requests, with prompts of lengths around a block of 32."""
    rnd = random.Random(5)
    kinds = [
        SamplingParams(temperature=1.0, seed=2**62 + 1),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.8, seed=7, repetition_penalty=1.2, frequency_penalty=0.3),
        SamplingParams(temperature=1.5, seed=7, top_p=0.9),
        SamplingParams(temperature=0.0, presence_penalty=0.5),
        SamplingParams(temperature=0.7, seed=11, top_k=20, logit_bias={5: 2.0}),
        SamplingParams(temperature=1.0, seed=0, min_p=0.05),
        SamplingParams(temperature=2.0, seed=123456789012),
    ]
    return [
        TokenRequest(
            ticket=ticket,
            prompt_ids=[rnd.randrange(vocabulary) for _ in range(rnd.choice([1, 31, 32, 33, 70]))],
            max_new_tokens=tokens,
            ignore_eos=True,
            sampling=kinds[ticket % len(kinds)],
        )
        for ticket in range(count)
    ]


def prompt(length: int, salt: int = 0) -> list[int]:
    """Make a prompt of bytes."""
    return [(index * 37 + salt * 101 + 11) % 256 for index in range(length)]


def ask(ticket: int = 1, length: int = 20, tokens: int = 12, **changes: object) -> TokenRequest:
    """Ask greedily for so many tokens; `changes` are fields of TokenRequest."""
    plain = TokenRequest(
        ticket=ticket,
        prompt_ids=prompt(length, ticket),
        max_new_tokens=tokens,
        ignore_eos=True,
        sampling=SamplingParams(temperature=0.0),
    )
    return msgspec.structs.replace(plain, **changes)


def alone(engine: TokenEngine, request: TokenRequest) -> Outcome:
    """Run one request by itself."""
    return run(engine, [request])[request.ticket]
