"""Attention of all sequences of a pass in one operation: the flash attention that CUDA builds of torch bring along (Dao
2023), called so that each sequence may lie anywhere in the flat pool.

The pool has, per layer, keys and values [tokens, kv heads, size]. The operation takes for each sequence where it starts
in the pool and how long it is; it reads exactly that, packs the query heads of a group, and splits long sequences over
the device when each asks for one token. It is no public function, so `works` tries it against plain arithmetic first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from .attention import Attention, AttentionShape
from .schedule import KvCopy

DTYPES: Final = (torch.bfloat16, torch.float16)
"""What the operation takes."""
_MOST_HEAD_SIZE: Final = 256
TOLERANCE: Final = 0.02
"""Of values around one: bfloat16 has 8 bits."""
_BOUND_RATIO: Final = 8
_LEAST_BOUND: Final = 2048
_MOST_BOUNDS: Final = 3
"""See `key_bounds`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tokens of a pass belong to which sequence, and where that lies. All but `places` are int32.

    Attributes:
        places: Where each token of the pass lies in the pool: int64 [tokens].
        bounds: Where the queries of each sequence begin in the pass, and where the last ones end: [sequences + 1].
        starts: Where each sequence begins in the pool; one more, without meaning: [sequences + 1].
        lengths: How long each sequence is, with the tokens of this pass: [sequences].
    """

    places: torch.Tensor
    bounds: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    most_queries: int
    most_keys: int


Operation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Layout, float | None], torch.Tensor]
"""(query [tokens, heads, size], keys and values [pool, kv heads, size], layout, scale) -> [tokens, heads, size]."""


def flash(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: Layout, scale: float | None
) -> torch.Tensor:
    """Attend with torch's own kernel, causally: the last query of a sequence sees all of it."""
    operation: Any = torch.ops.aten._flash_attention_forward  # noqa: SLF001 - there is no public one with start offsets
    result = operation(
        query,
        keys,
        values,
        layout.bounds,
        layout.starts,
        layout.most_queries,
        layout.most_keys,
        0.0,  # dropout
        True,  # causal
        False,  # no debug mask
        scale=scale,
        seqused_k=layout.lengths,
    )
    output: torch.Tensor = result[0]
    return output


def key_bounds(operation: Operation, rows: int, kv_heads: int, context: int, device: torch.device | str) -> list[int]:
    """Return the values of `Layout.most_keys` that decode steps of so many sequences should be recorded with.

    torch's operation cuts `most_keys`, not the real lengths, into as many splits as fill the device (at most 128, of
    whole blocks of 64 to 256 keys: `num_splits_heuristic` of flash_api.cpp). Told of a context of 131,072 it takes
    pieces of 4,096 keys, so a sequence of 4,000 is read by one block after the other while most of the device idles. An
    eighth of a bound leaves it at least four pieces. Below 2,048 a piece is one or two blocks anyhow; and where
    sequences times heads fill 0.8 of twice the processors there are no splits, and one bound does.
    """
    if operation is not flash:
        return [context]
    return _bounds(rows * kv_heads, context, processors(device))


def processors(device: torch.device | str) -> int:
    """Return how many processors a device has; one without CUDA counts as one."""
    cuda: Any = torch.cuda
    if torch.device(device).type != "cuda":
        return 1
    return int(cuda.get_device_properties(device).multi_processor_count)


def _bounds(blocks: int, context: int, processors: int) -> list[int]:
    bounds = [context]
    if blocks < 0.8 * 2 * processors:
        while len(bounds) < _MOST_BOUNDS and bounds[-1] // _BOUND_RATIO >= _LEAST_BOUND:
            bounds.append(bounds[-1] // _BOUND_RATIO)
    return bounds


def plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: Layout, scale: float | None
) -> torch.Tensor:
    """Do the same in float32, step by step: the definition, for tests and for `works`."""
    bounds, starts, lengths = (list(map(int, numbers)) for numbers in (layout.bounds, layout.starts, layout.lengths))
    output = torch.zeros_like(query)
    group = query.shape[1] // keys.shape[1]
    for number, length in enumerate(lengths):
        begin, end, first = bounds[number], bounds[number + 1], starts[number]
        queries = query[begin:end].float().transpose(0, 1)
        its_keys = keys[first : first + length].float().repeat_interleave(group, dim=1).permute(1, 2, 0)
        its_values = values[first : first + length].float().repeat_interleave(group, dim=1).transpose(0, 1)
        weight = queries @ its_keys * (scale or query.shape[2] ** -0.5)
        at = torch.arange(length - (end - begin), length, device=query.device).unsqueeze(1)
        weight = weight.masked_fill(torch.arange(length, device=query.device) > at, -torch.inf)
        output[begin:end] = (weight.softmax(dim=-1).nan_to_num(0.0) @ its_values).transpose(0, 1).to(query.dtype)
    return output


class FlashAttention(Attention):
    """The pool, and the operation over it."""

    def __init__(
        self,
        shape: AttentionShape,
        tokens: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        operation: Operation = flash,
    ) -> None:
        self._pool = torch.zeros((shape.layers, 2, tokens, shape.kv_heads, shape.head_size), dtype=dtype, device=device)
        # Views made once: two indexings a layer are a millisecond of Python in a pass of a large model.
        self._keys: list[torch.Tensor] = [layer[0] for layer in self._pool]
        self._values: list[torch.Tensor] = [layer[1] for layer in self._pool]
        self.shape = shape
        self._operation = operation
        self._layout: Layout | None = None

    def keys(self, layer: int) -> torch.Tensor:
        """Return the keys of a layer."""
        return self._keys[layer]

    def values(self, layer: int) -> torch.Tensor:
        """Return the values of a layer."""
        return self._values[layer]

    def copy(self, copy: KvCopy) -> None:
        """Copy the keys and values of some tokens, in all layers."""
        source = self._pool[:, :, copy.source : copy.source + copy.count]
        self._pool[:, :, copy.target : copy.target + copy.count] = source

    def prepare(self, layout: Layout) -> None:
        """Learn what the next pass computes."""
        self._layout = layout
        self.places = layout.places

    def attend(self, layer: int, query: torch.Tensor, scale: float | None = None) -> torch.Tensor:
        """Attend; see `Attention`."""
        assert self._layout is not None
        return self._operation(query, self._keys[layer], self._values[layer], self._layout, scale)


def why_not(shape: AttentionShape, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Say why the operation cannot be used for a model on this device and with this torch; None if it can.

    It is tried with sequences in no order, of one token to thousands, one query each and pieces of many.
    """
    if dtype not in DTYPES:
        return f"{dtype} is none of the types it takes"
    if shape.head_size % 8 or shape.head_size > _MOST_HEAD_SIZE:
        return f"heads of {shape.head_size} are not what it takes"
    try:
        worst = max(difference(shape, dtype, device, is_piece=is_piece) for is_piece in (False, True))
    except (RuntimeError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None if worst <= TOLERANCE else f"it is off by {worst:.3g}"


def difference(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    is_piece: bool,
    operation: Operation = flash,
) -> float:
    """Return how far the operation is from the definition, at worst; not-a-number counts as infinitely far."""
    lengths = [1, 2, 63, 64, 65, 700, 1024, 4096]
    queries = [min(length, 100) for length in lengths] if is_piece else [1] * len(lengths)
    order = [3, 0, 6, 2, 7, 1, 5, 4]
    starts = [0] * len(lengths)
    tokens = 5
    for number in order:
        starts[number] = tokens
        tokens += lengths[number] + 3
    generator = torch.Generator(device=device).manual_seed(1)

    def random(count: int, width: int) -> torch.Tensor:
        size = (count, width, shape.head_size)
        return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype)

    def numbers(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    bounds = [sum(queries[:count]) for count in range(len(queries) + 1)]
    layout = Layout(
        places=numbers([]).long(),
        bounds=numbers(bounds),
        starts=numbers([*starts, 0]),
        lengths=numbers(lengths),
        most_queries=max(queries),
        most_keys=max(lengths),
    )
    query = random(bounds[-1], shape.heads)
    keys, values = random(tokens, shape.kv_heads), random(tokens, shape.kv_heads)
    attended = operation(query, keys, values, layout, None).float()
    off = (attended - plain(query, keys, values, layout, None).float()).abs().max()
    return float(torch.nan_to_num(off, nan=torch.inf))
