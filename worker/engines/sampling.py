"""How the next token is drawn from one row of logits, in numpy: the meaning of every field of `SamplingParams`.

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

import numpy as np

from .base import SamplingParams
from .gumbel import FloatRow, Uint32Row, gumbel_row
from .sampling_state import SamplingState


def choose(logits: FloatRow, draw: SamplingState, words: Uint32Row) -> int:
    """Return the next token of one row; the logits are not changed. `words` is `token_words(len(logits))`."""
    scores = adjust(logits.astype(np.float32), draw)
    if draw.is_greedy:
        return int(scores.argmax())
    scores = keep_likely(scores / np.float32(draw.sampling.temperature), draw.sampling)
    return int((scores + gumbel_row(draw.state, words)).argmax())


def adjust(scores: FloatRow, draw: SamplingState) -> FloatRow:
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


def keep_likely(scores: FloatRow, sampling: SamplingParams) -> FloatRow:
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
