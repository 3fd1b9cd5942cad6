"""What the next token of a generation depends on besides its logits, and which requests can be drawn from at all.

Needs no torch; `generate/batch_sampler.py` says what is done with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from .base import Capacity, RequestRefusedError, SamplingParams, TokenRequest
from .grammar import Matcher
from .murmur3 import row_state

GREEDY_BELOW: Final = 1e-5
MAX_LOGPROBS: Final = 20


@dataclass(slots=True)
class SamplingState:
    """What the next token of one generation depends on besides its logits."""

    sampling: SamplingParams
    prompt_ids: frozenset[int]
    stop_ids: frozenset[int]
    min_new_tokens: int
    position: int
    """Index of the next token in prompt and output together."""
    generated: Counter[int] = field(default_factory=Counter[int])
    generated_count: int = 0
    matcher: Matcher | None = None
    """Of one that keeps to a grammar: its next token is drawn under the mask that the one before it leaves."""

    @classmethod
    def of(cls, request: TokenRequest, stop_ids: Iterable[int], matcher: Matcher | None = None) -> SamplingState:
        """Start where the request starts: behind its prompt and what it resumes from."""
        return cls(
            sampling=request.sampling,
            prompt_ids=frozenset(request.prompt_ids) if request.sampling.repetition_penalty != 1.0 else frozenset(),
            stop_ids=frozenset(stop_ids),
            min_new_tokens=request.min_new_tokens,
            position=len(request.prompt_ids) + len(request.resume_ids),
            generated=Counter(request.resume_ids),
            generated_count=len(request.resume_ids),
            matcher=matcher,
        )

    def take(self, token_id: int) -> None:
        """Count a token that was drawn."""
        self.generated[token_id] += 1
        self.generated_count += 1
        self.position += 1
        if self.matcher is not None:
            self.matcher.take(token_id)

    @property
    def is_greedy(self) -> bool:
        """Whether the best token is taken as it is."""
        return self.sampling.temperature < GREEDY_BELOW

    @property
    def is_penalised(self) -> bool:
        """Whether tokens seen before are worth less (or more)."""
        sampling = self.sampling
        return bool(sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty)

    @property
    def noise_state(self) -> int:
        """What the noise of the next token depends on, but the token id (`murmur3.row_state`)."""
        return row_state(self.sampling.seed, self.position)


def check_size(request: TokenRequest, capacity: Capacity) -> int:
    """Refuse what is too long ever to run; return how many new tokens there is room for."""
    context, pool, prompt = capacity.context, capacity.kv_tokens, len(request.prompt_ids)
    total = prompt + len(request.resume_ids)
    if not prompt:
        raise RequestRefusedError("prompt_ids is empty; there must be at least one token")
    if prompt >= context or total > context:
        raise RequestRefusedError(f"prompt_ids and resume_ids are {total} tokens, the context is {context}")
    if request.max_new_tokens < 1:
        raise RequestRefusedError(f"max_new_tokens is {request.max_new_tokens}, but must be 1 or above")
    if (request.sampling.logprobs or 0) > MAX_LOGPROBS:
        raise RequestRefusedError(f"logprobs is {request.sampling.logprobs}, but must be at most {MAX_LOGPROBS}")
    max_new_tokens = min(request.max_new_tokens, context - prompt)
    if pool and prompt + max_new_tokens > pool:
        text = f"the request may grow to {prompt + max_new_tokens} tokens, and there is memory for {pool} in all"
        raise RequestRefusedError(f"{text}; ask for fewer with max_tokens")
    return max_new_tokens


def check(request: TokenRequest, *, vocabulary: int) -> None:
    """Refuse what cannot be drawn from, naming the field; the caller has checked lengths.

    An id outside the vocabulary would end the whole engine in an index error, so all of them are looked at.
    """
    sampling = request.sampling
    if not sampling.temperature >= 0.0:
        raise _not_as_wanted("temperature", sampling.temperature, "0 or above")
    if not 0.0 < sampling.top_p <= 1.0:
        raise _not_as_wanted("top_p", sampling.top_p, "above 0 and at most 1")
    if sampling.top_k < 0:
        raise _not_as_wanted("top_k", sampling.top_k, "0 (off) or above")
    if not 0.0 <= sampling.min_p <= 1.0:
        raise _not_as_wanted("min_p", sampling.min_p, "from 0 to 1")
    if not sampling.repetition_penalty > 0.0:
        raise _not_as_wanted("repetition_penalty", sampling.repetition_penalty, "above 0")
    if sampling.logprobs is not None and sampling.logprobs < 0:
        raise _not_as_wanted("logprobs", sampling.logprobs, "0 or above")
    if not 0 <= sampling.seed < 2**63:
        raise _not_as_wanted("seed", sampling.seed, "from 0 to 2**63-1")
    _check_ids("prompt_ids", request.prompt_ids, vocabulary)
    if request.resume_ids:
        _check_ids("resume_ids", request.resume_ids, vocabulary)
    if sampling.logit_bias:
        _check_ids("logit_bias", sampling.logit_bias, vocabulary)


def _check_ids(name: str, ids: Collection[int], vocabulary: int) -> None:
    for token_id in (min(ids), max(ids)) if ids else ():
        if not 0 <= token_id < vocabulary:
            raise _not_as_wanted(name, token_id, f"ids from 0 to {vocabulary - 1}")


def _not_as_wanted(name: str, value: object, wanted: str) -> RequestRefusedError:
    return RequestRefusedError(f"{name} is {value}, but must be {wanted}")
