"""How the next token is drawn from one row of logits, in numpy: what the samplers of the engines are held against.

The order, and what each step sees, is said in worker/engines/generate/batch_sampler.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from zmqrt.worker.engines.base import SamplingParams
from zmqrt.worker.engines.murmur3 import C1, C2, LENGTH_BYTES, MIX1, MIX2, ROUND_ADD
from zmqrt.worker.engines.sampling_state import SamplingState

Uint32Row = npt.NDArray[np.uint32]
FloatRow = npt.NDArray[np.float32]
_SCALE = 2.0**-32
_BELOW_ONE = 1.0 - 2.0**-24


def choose(logits: FloatRow, state: SamplingState, words: Uint32Row) -> int:
    """Return the next token of one row; the logits are not changed. `words` is `token_words(len(logits))`."""
    scores = adjust(logits.astype(np.float32), state)
    if state.is_greedy:
        return int(scores.argmax())
    scores = keep_likely(scores / np.float32(state.sampling.temperature), state.sampling)
    return int((scores + gumbel_row(state.noise_state, words)).argmax())


def adjust(scores: FloatRow, state: SamplingState) -> FloatRow:
    """Apply penalties, bias and the minimum length, in place (steps 1 to 3)."""
    sampling = state.sampling
    if sampling.repetition_penalty != 1.0:
        seen = np.fromiter(state.prompt_ids | state.generated.keys(), dtype=np.int64)
        penalty = np.float32(sampling.repetition_penalty)
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    for token_id, count in state.generated.items() if state.is_penalised else ():
        scores[token_id] -= sampling.presence_penalty + sampling.frequency_penalty * count
    for token_id, bias in sampling.logit_bias.items():
        scores[token_id] += bias
    if state.generated_count < state.min_new_tokens:
        scores[[token_id for token_id in state.stop_ids if token_id < len(scores)]] = -np.inf
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


# --- the noise -------------------------------------------------------------------------------------------------------


def token_words(size: int) -> Uint32Row:
    """Scramble the ids 0..size-1: the part of the hash that depends on the token alone."""
    words = np.arange(size, dtype=np.uint32) * np.uint32(C1)
    return (words << np.uint32(15) | words >> np.uint32(17)) * np.uint32(C2)


def hash_row(state: int, words: Uint32Row) -> Uint32Row:
    """Hash every token of one row, as numpy."""
    value = words ^ np.uint32(state)
    value = (value << np.uint32(13) | value >> np.uint32(19)) * np.uint32(5) + np.uint32(ROUND_ADD)
    value ^= np.uint32(LENGTH_BYTES)
    value = (value ^ value >> np.uint32(16)) * np.uint32(MIX1)
    value = (value ^ value >> np.uint32(13)) * np.uint32(MIX2)
    return value ^ value >> np.uint32(16)


def gumbel_row(state: int, words: Uint32Row) -> FloatRow:
    """Draw the noise of one row, as numpy float32.

    The uniform is (hash + 1/2) / 2**32; small uniforms become large noise, and near zero a float32 has bits to spare,
    so unlikely tokens are drawn as often as they should be (down to about 1e-10).
    """
    uniform = (hash_row(state, words).astype(np.float32) + np.float32(0.5)) * np.float32(_SCALE)
    np.minimum(uniform, np.float32(_BELOW_ONE), out=uniform)
    noise: FloatRow = -np.log(-np.log1p(-uniform))
    return noise
