"""One vector of a text from those of its tokens, as sentence-transformers computes it. Padding counts for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

import torch
from torch.nn.functional import normalize

from ...sentence_config import Pooling

_NOTHING: Final = 1e-9
"""A text without tokens has a vector of zeros, and not of no numbers."""


def pool(hidden: torch.Tensor, mask: torch.Tensor, poolings: Sequence[Pooling], *, is_normalised: bool) -> torch.Tensor:
    """Return a vector per row, in float32: of several ways one behind the other.

    Args:
        hidden: Rows of vectors of tokens, padded behind.
        mask: 1 for tokens, 0 for padding.
        poolings: The ways.
        is_normalised: Whether vectors are of length one.
    """
    numbers = hidden.float()
    vectors = torch.cat([_pooled(numbers, mask, pooling) for pooling in poolings], dim=1)
    return normalize(vectors, dim=1) if is_normalised else vectors


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    match pooling:
        case "cls":
            return hidden[:, 0]
        case "mean":
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1).clamp(min=_NOTHING)
        case "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
        case "max":
            return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(1).values
        case _:
            assert_never(pooling)
