"""How the next tokens of a batch are drawn, and so the meaning of every field of `SamplingParams`.

Rows do not see each other: greedy ones, sampled ones and penalised ones stand side by side in one batch. The order, and
what each step sees:

1. penalties: repetition over prompt and output (logit / r above zero, logit * r below), then presence and frequency
   over the output alone;
2. logit bias, added;
3. what the grammar does not allow is shut out, and stop ids while fewer than `min_new_tokens` tokens are out;
4. greedy (temperature below 1e-5): the argmax, the lowest id of equals. Else logits / temperature;
5. top-k, then top-p over what top-k left, then min-p against the best one; ties at a threshold stay;
6. plus Gumbel noise of (seed, position, token id), and the argmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from ..base import SamplingParams
from ..grammar import words_of
from ..gumbel import GumbelNoise
from ..sampling_state import SamplingState


class BatchSampler:
    """Turns logits into scores whose argmax is the next token of each row."""

    def __init__(self, vocabulary: int, device: torch.device | str) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._noise = GumbelNoise(vocabulary, device)

    def scores(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
        """Return scores [rows, vocabulary] for float32 logits, which are changed in place."""
        for row, state in enumerate(states):
            self._adjust(logits[row], state)
        sampled = [row for row, state in enumerate(states) if not state.is_greedy]
        if sampled:
            index = torch.tensor(sampled, device=self._device)
            logits[index] = self._noisy(logits[index], [states[row] for row in sampled])
        return logits

    def logprobs(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> dict[int, torch.Tensor]:
        """Return the log probabilities of the rows that asked for them, before anything has changed the logits."""
        return {
            row: logits[row].log_softmax(dim=-1)
            for row, state in enumerate(states)
            if state.sampling.logprobs is not None
        }

    def _adjust(self, scores: torch.Tensor, state: SamplingState) -> None:
        """Apply penalties, bias and the minimum length to one row, in place."""
        sampling = state.sampling
        if sampling.repetition_penalty != 1.0:
            seen = self._ids(state.prompt_ids | state.generated.keys())
            old, penalty = scores[seen], sampling.repetition_penalty
            scores[seen] = torch.where(old > 0, old / penalty, old * penalty)
        if state.is_penalised and state.generated:
            each = [sampling.presence_penalty + sampling.frequency_penalty * n for n in state.generated.values()]
            scores[self._ids(state.generated)] -= torch.tensor(each, device=self._device)
        if sampling.logit_bias:
            bias = torch.tensor(list(sampling.logit_bias.values()), device=self._device)
            scores[self._ids(sampling.logit_bias)] += bias
        if state.matcher is not None:
            words = torch.frombuffer(words_of([state.matcher.mask]), dtype=torch.int64).to(self._device)
            allowed = token_mask(words, self._vocabulary)
            scores.masked_fill_(~allowed, -torch.inf)
        if state.generated_count < state.min_new_tokens:
            scores[self._ids(token_id for token_id in state.stop_ids if token_id < self._vocabulary)] = -torch.inf

    def _ids(self, ids: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(ids), dtype=torch.int64, device=self._device)

    def _noisy(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> torch.Tensor:
        scores = logits.div_(self._column([state.sampling.temperature for state in states]))
        self._on_some(scores, states, self._keep_top, lambda limits: bool(limits.top_k or limits.top_p < 1.0))
        self._on_some(scores, states, self._keep_near_best, lambda limits: limits.min_p > 0.0)
        return scores.add_(self._noise.draw(self._noise.states([state.noise_state for state in states])))

    def _on_some(
        self,
        scores: torch.Tensor,
        states: Sequence[SamplingState],
        limit: Callable[[torch.Tensor, list[SamplingParams]], torch.Tensor],
        wanted: Callable[[SamplingParams], bool],
    ) -> None:
        """Apply a limit to the rows that want it, in place: sorting is the dearest step, so that no other row pays."""
        rows = [row for row, state in enumerate(states) if wanted(state.sampling)]
        if rows:
            index = torch.tensor(rows, device=self._device)
            some = scores[index]
            threshold = limit(some, [states[row].sampling for row in rows])
            scores[index] = some.masked_fill_(some < threshold, -torch.inf)

    def _keep_top(self, scores: torch.Tensor, samplings: list[SamplingParams]) -> torch.Tensor:
        """Return the lowest score that top-k, and top-p over what it leaves, keep of each row."""
        top_k = [min(sampling.top_k or self._vocabulary, self._vocabulary) for sampling in samplings]
        limit = torch.tensor(top_k, device=self._device).unsqueeze(1)
        best = scores.topk(max(top_k), dim=-1).values
        is_out = torch.arange(best.shape[1], device=self._device) >= limit
        probabilities = best.masked_fill(is_out, -torch.inf).softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        # A top_p of one keeps all: the sum of a long row may pass one by rounding.
        top_p = self._column([sampling.top_p if sampling.top_p < 1.0 else 2.0 for sampling in samplings])
        kept = (before < top_p).sum(dim=-1, keepdim=True).minimum(limit).clamp_(min=1)
        return best.gather(1, kept - 1)

    def _keep_near_best(self, scores: torch.Tensor, samplings: list[SamplingParams]) -> torch.Tensor:
        """Return the lowest score that min-p keeps of each row."""
        return scores.amax(dim=-1, keepdim=True) + self._column([sampling.min_p for sampling in samplings]).log()

    def _column(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device).unsqueeze(1)


def token_mask(words: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Unpack masks of a bit for each token, int64 [..., words], to bool [..., vocabulary]."""
    bits = words.unsqueeze(-1) >> torch.arange(64, device=words.device) & 1
    return bits.flatten(-2)[..., :vocabulary].bool()


def report(logprobs: torch.Tensor, token_id: int, count: int) -> dict[int, float]:
    """Return the log probability of a token and of the `count` likeliest ones of its row."""
    likeliest = logprobs.topk(min(count, logprobs.shape[0])).indices
    ids = {token_id, *(int(id_) for id_ in likeliest)}
    return {id_: float(logprobs[id_]) for id_ in ids}
