"""Attention over the flat pool: where keys and values are written, and what each query sees.

Here with the attention of torch, for any device; `flash.py` does the same with one operation for all sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from .schedule import KvCopy, SequenceStep


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What the attention of a model looks like, and so its pool."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int

    @classmethod
    def of(cls, config: Any) -> AttentionShape:  # noqa: ANN401 - transformers' configurations are untyped
        """Read it from the configuration of a model."""
        heads = int(config.num_attention_heads)
        kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        return cls(int(config.num_hidden_layers), heads, kv_heads, head_size)

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Return what one token costs in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * dtype.itemsize


@dataclass(frozen=True, slots=True)
class _KeyRange:
    """What the queries of one part see: rows `begin` .. `end` of the step, keys `first` .. `last` of the pool."""

    begin: int
    end: int
    first: int
    last: int
    mask: torch.Tensor | None


class Attention(ABC):
    """Where a model's keys and values lie, and the attention of one step over them."""

    shape: AttentionShape
    places: torch.Tensor
    """Where each token of the step lies in the pool: int64 [tokens]."""

    @abstractmethod
    def keys(self, layer: int) -> torch.Tensor:
        """Return the keys of a layer: [pool tokens, kv heads, size]."""

    @abstractmethod
    def values(self, layer: int) -> torch.Tensor:
        """Return the values of a layer: [pool tokens, kv heads, size]."""

    @abstractmethod
    def copy(self, copy: KvCopy) -> None:
        """Copy the keys and values of some tokens, in all layers."""

    @abstractmethod
    def attend(self, layer: int, query: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        """Let each query [tokens, heads, size] see what lies before it and at its place; same shape out."""

    def store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write keys and values [tokens of the step, kv heads, size] into the pool."""
        self.keys(layer).index_copy_(0, self.places, key)
        self.values(layer).index_copy_(0, self.places, value)

    def as_interface(
        self,
        module: Any,  # noqa: ANN401 - whatever attention module transformers calls us from
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None,
    ) -> torch.Tensor:
        """Attend for a module of transformers: [1, heads, tokens, size] in, [1, tokens, heads, size] out."""
        layer = int(module.layer_idx)
        self.store(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        return self.attend(layer, query[0].transpose(0, 1), scale).unsqueeze(0)


class PoolAttention(Attention):
    """Torch's own attention, sequence by sequence: the host knows all lengths, and nothing is gathered or padded.

    The pool has, per layer, keys and values [heads, tokens, size]: the tokens of one sequence lie side by side in each
    head, so a sequence is a view. Queries of one group of heads are folded beside each other and see their keys once.
    """

    def __init__(self, shape: AttentionShape, tokens: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        size = (shape.layers, 2, shape.kv_heads, tokens, shape.head_size)
        self._pool = torch.zeros(size, dtype=dtype, device=device)
        self.shape = shape
        self.places = torch.zeros(0, dtype=torch.int64, device=device)
        self._key_ranges: list[_KeyRange] = []

    def keys(self, layer: int) -> torch.Tensor:
        """Return the keys of a layer as a view."""
        return self._pool[layer, 0].transpose(0, 1)

    def values(self, layer: int) -> torch.Tensor:
        """Return the values of a layer as a view."""
        return self._pool[layer, 1].transpose(0, 1)

    def copy(self, copy: KvCopy) -> None:
        """Copy the keys and values of some tokens, in all layers."""
        source = self._pool[:, :, :, copy.source : copy.source + copy.count]
        self._pool[:, :, :, copy.target : copy.target + copy.count] = source

    def prepare(self, parts: Sequence[SequenceStep], places: torch.Tensor) -> None:
        """Learn what the next pass computes; tokens behind those of the parts are padding, and see nothing."""
        self.places = places
        self._key_ranges = []
        at = 0
        for part in parts:
            start, count = part.sequence.extent.start, part.end - part.begin
            mask = None if count == 1 else self._mask(part)
            self._key_ranges.append(_KeyRange(at, at + count, start, start + part.end, mask))
            at += count

    def _mask(self, part: SequenceStep) -> torch.Tensor:
        """Let each token of a piece see what lies before it, and itself: bool [count, end]."""
        count = part.end - part.begin
        mask = torch.ones(count, part.end, dtype=torch.bool, device=self._pool.device)
        return mask.tril_(part.begin)

    def attend(self, layer: int, query: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        """Attend; see `Attention`."""
        keys, values = self._pool[layer, 0], self._pool[layer, 1]
        heads, size = query.shape[1], query.shape[2]
        kv_heads = self.shape.kv_heads
        group = heads // kv_heads
        output = torch.empty_like(query)
        for keys_seen in self._key_ranges:
            count = keys_seen.end - keys_seen.begin
            # [count, kv heads, group, size] -> [kv heads, group x count, size]: each head of keys is read once.
            folded = query[keys_seen.begin : keys_seen.end].view(count, kv_heads, group, size).permute(1, 2, 0, 3)
            mask = None if keys_seen.mask is None else keys_seen.mask.repeat(group, 1)
            attended = scaled_dot_product_attention(
                folded.reshape(1, kv_heads, group * count, size),
                keys[:, keys_seen.first : keys_seen.last].unsqueeze(0),
                values[:, keys_seen.first : keys_seen.last].unsqueeze(0),
                attn_mask=mask,
                scale=scale,
            )
            output[keys_seen.begin : keys_seen.end] = (
                attended.view(kv_heads, group, count, size).permute(2, 0, 1, 3).reshape(count, heads, size)
            )
        output[self._key_ranges[-1].end :] = 0
        return output
