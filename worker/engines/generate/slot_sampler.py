"""How the next tokens of a batch are drawn where all that decides about it lies on the device: no number is asked back.

The same choices, row by row, as `batch_sampler.py` says. What top-k and top-p keep is found by its threshold, the score
that just belongs to it, bit by bit and without sorting a vocabulary; ties at a threshold stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..gumbel import GumbelNoise, row_states
from ..sampling_state import MAX_LOGPROBS
from . import sequence_table as s
from .sequence_table import SamplingMode, SequenceTable


@dataclass(frozen=True, slots=True)
class Sample:
    """What was drawn.

    Attributes:
        tokens: int64 [slots].
        report: If asked for, the log probability of each token, float32 [slots], and the likeliest ones with their ids,
            [slots, 20] each; all before anything but the model had its say.
    """

    tokens: torch.Tensor
    report: tuple[torch.Tensor, ...] = ()

    def first(self, count: int) -> Sample:
        """Return what the first slots drew."""
        return Sample(self.tokens[:count], tuple(tensor[:count] for tensor in self.report))

    @staticmethod
    def of_all(samples: Sequence[Sample]) -> Sample:
        """Put samples together; the result is a copy. What only some of them report nobody has asked for."""
        reports = zip(*(sample.report for sample in samples), strict=False)
        return Sample(torch.cat([sample.tokens for sample in samples]), tuple(torch.cat(parts) for parts in reports))


class SlotSampler:
    """Draws for the sequences of some slots."""

    def __init__(self, slots: SequenceTable) -> None:
        self._slots = slots
        self._noise = GumbelNoise(slots.counts.shape[1], slots.table.device)

    def draw(self, slots: torch.Tensor, logits: torch.Tensor, mode: SamplingMode) -> Sample:
        """Draw a token for each slot and append it there; logits [slots, vocabulary] of any type stay as they are."""
        tokens = self._draw(slots, logits, mode)
        return Sample(tokens, _report(logits.float(), tokens) if SamplingMode.REPORTED in mode else ())

    def hashes(self, slots: torch.Tensor) -> torch.Tensor:
        """Return the hash of each id, int32 [slots, vocabulary]: what noise is made of, for looking in."""
        return self._noise.hashes(_states(self._slots.table[slots]))

    def scores(self, slots: torch.Tensor, logits: torch.Tensor, mode: SamplingMode) -> torch.Tensor:
        """Return what noise is added to, float32: minus infinity where a token is shut out; greedy rows undivided."""
        lines = self._slots.table[slots]
        reals = lines.view(torch.float64)
        scores = logits.float()
        if SamplingMode.ADJUSTED in mode:
            scores = self._adjust(slots, lines, reals, scores)
        temperature = reals[:, s.TEMPERATURE].float().unsqueeze(1)
        divided = scores / temperature.masked_fill(temperature == 0, 1.0)
        if SamplingMode.CUT in mode:
            divided = self._cut(lines, reals, divided)
        return torch.where(temperature == 0, scores, divided)

    def _draw(self, slots: torch.Tensor, logits: torch.Tensor, mode: SamplingMode) -> torch.Tensor:
        scores, lines = self.scores(slots, logits, mode), self._slots.table[slots]
        is_greedy = (lines.view(torch.float64)[:, s.TEMPERATURE] == 0).unsqueeze(1)
        tokens = torch.where(is_greedy, scores, scores + self._noise.draw(_states(lines))).argmax(dim=-1)
        self._slots.advance(slots, tokens, mode)
        return tokens

    def _adjust(
        self, slots: torch.Tensor, lines: torch.Tensor, reals: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        """Apply penalties, bias and the minimum length."""
        repetition, presence, frequency = (
            reals[:, column].float().unsqueeze(1) for column in (s.REPETITION, s.PRESENCE, s.FREQUENCY)
        )
        counts = self._slots.counts[slots]
        is_seen = self._slots.in_prompt(slots) | (counts > 0)
        repeated = torch.where(scores > 0, scores / repetition, scores * repetition)
        scores = torch.where(is_seen, repeated, scores)
        scores = torch.where(counts > 0, scores - (presence + frequency * counts), scores)
        scores = scores + self._slots.bias[slots]
        is_young = (lines[:, s.LENGTH] - lines[:, s.PROMPT] < lines[:, s.MIN_NEW]).unsqueeze(1)
        return scores.masked_fill(self._slots.stops(slots) & is_young, -torch.inf)

    def _cut(self, lines: torch.Tensor, reals: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Shut out what top-k, top-p and min-p leave out."""
        vocabulary = scores.shape[1]
        keys = _ordered(scores)
        top_k = lines[:, s.TOP_K].clamp(max=vocabulary).unsqueeze(1)
        wanted = top_k.masked_fill(top_k <= 0, vocabulary)
        best = _largest(keys, lambda key: (keys >= key).sum(dim=1, keepdim=True) >= wanted)
        is_in = keys >= best
        probabilities = scores.masked_fill(~is_in, -torch.inf).softmax(dim=-1)
        top_p = reals[:, s.TOP_P].float().unsqueeze(1)
        top_p = top_p.masked_fill(top_p >= 1.0, 2.0)  # one keeps all: the sum of a long row may pass it by rounding
        beyond = _largest(keys, lambda key: (probabilities * (keys > key)).sum(dim=1, keepdim=True) >= top_p)
        is_in &= keys > beyond
        nearest = scores.amax(dim=-1, keepdim=True) + reals[:, s.MIN_P].float().log().unsqueeze(1)
        return scores.masked_fill(~is_in | (scores < nearest), -torch.inf)


def _states(lines: torch.Tensor) -> torch.Tensor:
    return row_states(lines[:, s.SEED_HIGH].int(), lines[:, s.SEED_LOW].int(), lines[:, s.LENGTH].int())


def _ordered(scores: torch.Tensor) -> torch.Tensor:
    """Map float32 to int32 that are ordered alike, both zeros to one."""
    bits = (scores + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _largest(keys: torch.Tensor, holds: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return for each row the largest key for which `holds`, a property that smaller keys have too: int32 [rows, 1].

    Found by halving the range of int32 32 times. If it holds for none, the smallest int32 comes out.
    """
    low = torch.full((len(keys), 1), -(2**31), dtype=torch.int64, device=keys.device)
    high = torch.full_like(low, 2**31)
    for _ in range(32):
        middle = (low + high) >> 1
        is_held = holds(middle)
        low, high = torch.where(is_held, middle, low), torch.where(is_held, high, middle)
    return low.int()


def _report(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(min(MAX_LOGPROBS, logits.shape[1]), dim=-1)
    return logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1), best.values, best.indices
