"""What a request is in vLLM's words. Pure, and knows no vLLM: the arguments of its `SamplingParams` as a mapping."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from .base import TokenRequest
from .murmur3 import row_state
from .sampling_state import GREEDY_BELOW

_MOST_BIASED: Final = 1024
"""vLLM takes no more entries of `logit_bias`."""


def sampling_arguments(
    request: TokenRequest, max_new_tokens: int, *, has_keyed_noise: bool, takes_seeds: bool = True
) -> dict[str, Any]:
    """Return the arguments for what is left to be made of a request; what it resumes from becomes part of its prompt.

    `has_keyed_noise`: noise depends on seed and position, so a resumed request draws what it would have drawn. Without
    `takes_seeds` it is drawn from what all requests share; a greedy request needs no noise, and none of its own.
    """
    sampling, made = request.sampling, len(request.resume_ids)
    left = max_new_tokens - made
    seed = sampling.seed
    if made and not has_keyed_noise:  # a generator that begins anew would draw the noise of the first tokens again
        seed = row_state(seed, made)
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": _bias(request) or None,
        "seed": seed if takes_seeds and sampling.temperature >= GREEDY_BELOW else None,
        "logprobs": sampling.logprobs,
        "max_tokens": left,
        "min_tokens": min(left, max(0, request.min_new_tokens - made)),
        "stop_token_ids": request.stop_ids,
        "ignore_eos": True,  # the agent names all stop ids, and vLLM has no tokenizer to know one by
        "detokenize": False,
    }


def _bias(request: TokenRequest) -> dict[int, float]:
    """Add to the bias what tokens are worth less that were made elsewhere: vLLM takes them for part of the prompt.

    Presence counts again for those that are made here once more; all else is as if they had been made here.
    """
    sampling = request.sampling
    bias = dict(sampling.logit_bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in Counter(request.resume_ids).most_common(_MOST_BIASED - len(bias)):
            bias[token] = bias.get(token, 0.0) - sampling.presence_penalty - sampling.frequency_penalty * count
    return bias
