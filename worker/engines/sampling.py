"""How the next token is drawn from one row of logits, in numpy: the meaning of every field of `Sampling`.

The batched form in `sampling_torch.py` must choose the same tokens. The order, and what each step sees:

1. penalties: repetition over prompt and output (logit / r above zero, logit * r below), then presence and frequency
   over the output alone;
2. logit bias, added;
3. stop ids are shut out while fewer than `min_new_tokens` tokens are out;
4. greedy (temperature below 1e-5): the argmax, the lowest id of equals. Else logits / temperature;
5. top-k, then top-p over what top-k left, then min-p against the best one; ties at a threshold stay;
6. plus Gumbel noise of (seed, position, token id), and the argmax.

Knows no engine, no batch and no text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from .base import RequestRefusedError, Sampling, TokenRequest
from .noise import FloatRow, Uint32Row, gumbel_row, row_state

GREEDY_BELOW: Final = 1e-5


@dataclass(slots=True)
class Draw:
    """What the next token of one generation depends on besides its logits."""

    sampling: Sampling
    prompt_ids: frozenset[int]
    stop_ids: frozenset[int]
    min_new_tokens: int
    position: int
    """Index of the next token in prompt and output together."""
    generated: Counter[int] = field(default_factory=Counter[int])
    generated_count: int = 0

    @classmethod
    def of(cls, request: TokenRequest, stop_ids: Iterable[int]) -> Draw:
        """Start where the request starts: behind its prompt and what it resumes from."""
        return cls(
            sampling=request.sampling,
            prompt_ids=frozenset(request.prompt_ids) if request.sampling.repetition_penalty != 1.0 else frozenset(),
            stop_ids=frozenset(stop_ids),
            min_new_tokens=request.min_new_tokens,
            position=len(request.prompt_ids) + len(request.resume_ids),
            generated=Counter(request.resume_ids),
            generated_count=len(request.resume_ids),
        )

    def take(self, token_id: int) -> None:
        """Count a token that was drawn."""
        self.generated[token_id] += 1
        self.generated_count += 1
        self.position += 1

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
    def state(self) -> int:
        """The row state of the noise for the next token."""
        return row_state(self.sampling.seed, self.position)


def check(request: TokenRequest, *, vocabulary: int) -> None:
    """Refuse what cannot be drawn from, naming the field; the caller has checked lengths.

    An id outside the vocabulary would end the whole engine in an index error, so all of them are looked at.
    """
    sampling = request.sampling
    _require(sampling.temperature >= 0.0, "temperature", sampling.temperature, "0 or above")
    _require(0.0 < sampling.top_p <= 1.0, "top_p", sampling.top_p, "above 0 and at most 1")
    _require(sampling.top_k >= 0, "top_k", sampling.top_k, "0 (off) or above")
    _require(0.0 <= sampling.min_p <= 1.0, "min_p", sampling.min_p, "from 0 to 1")
    _require(sampling.repetition_penalty > 0.0, "repetition_penalty", sampling.repetition_penalty, "above 0")
    _require(sampling.logprobs is None or sampling.logprobs >= 0, "logprobs", sampling.logprobs, "0 or above")
    _require(0 <= sampling.seed < 2**63, "seed", sampling.seed, "from 0 to 2**63-1")
    for name, ids in (
        ("prompt_ids", request.prompt_ids),
        ("resume_ids", request.resume_ids),
        ("logit_bias", sampling.logit_bias),
    ):
        for token_id in ids:
            _require(0 <= token_id < vocabulary, name, token_id, f"ids from 0 to {vocabulary - 1}")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise RequestRefusedError(f"{name} is {value}, but must be {wanted}")


def choose(logits: FloatRow, draw: Draw, words: Uint32Row) -> int:
    """Return the next token of one row; the logits are not changed. `words` is `token_words(len(logits))`."""
    scores = adjust(logits.astype(np.float32), draw)
    if draw.is_greedy:
        return int(scores.argmax())
    scores = keep_likely(scores / np.float32(draw.sampling.temperature), draw.sampling)
    return int((scores + gumbel_row(draw.state, words)).argmax())


def adjust(scores: FloatRow, draw: Draw) -> FloatRow:
    """Apply penalties, bias and the minimum length, in place (steps 1 to 3)."""
    sampling = draw.sampling
    if sampling.repetition_penalty != 1.0:
        seen = np.fromiter(draw.prompt_ids | draw.generated.keys(), dtype=np.int64)
        penalty = np.float32(sampling.repetition_penalty)
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    for token_id, count in draw.generated.items() if draw.is_penalised else ():
        scores[token_id] -= sampling.presence_penalty + sampling.frequency_penalty * count
    for token_id, bias in sampling.logit_bias.items():
        scores[token_id] += bias
    if draw.generated_count < draw.min_new_tokens:
        scores[[token_id for token_id in draw.stop_ids if token_id < len(scores)]] = -np.inf
    return scores


def keep_likely(scores: FloatRow, sampling: Sampling) -> FloatRow:
    """Set what top-k, top-p and min-p leave out to minus infinity (step 5)."""
    threshold = np.float32(-np.inf)
    if sampling.min_p > 0.0:
        threshold = scores.max() + np.log(np.float32(sampling.min_p))
    if sampling.top_k or sampling.top_p < 1.0:
        best = np.sort(scores)[::-1][: sampling.top_k or None]
        probabilities = np.exp(best - best[0])
        probabilities /= probabilities.sum()
        before = np.cumsum(probabilities) - probabilities
        kept = int((before < sampling.top_p).sum()) if sampling.top_p < 1.0 else len(best)
        threshold = max(threshold, best[max(kept, 1) - 1])
    return np.where(scores < threshold, np.float32(-np.inf), scores)
