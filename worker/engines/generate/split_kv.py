"""Attention of decode steps by kernels of our own; pieces of prompts stay with torch's operation.

torch's operation decides on the host how sequences are cut, all alike and by the longest that it is told of, and copies
queries and results where heads share their keys. These kernels (`attention_kernels.py`) cut by the lengths that the
device knows, each sequence by its own, and take two launches a layer and one a step.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import triton

from . import attention_kernels as untyped_kernels
from .attention import AttentionShape
from .flash import TOLERANCE, Layout, Operation, difference, flash, processors

kernels: Any = untyped_kernels
_PROGRAMS_PER_PROCESSOR: Final = 4
"""Splits that each processor of the device is to have: several at once hide that each waits for memory, and the more
there are, the less the last ones are waited for."""
_LEAST_SPLIT: Final = 128
"""Two tiles, as torch's operation has at least one: below that the second kernel reads more than a split saves."""
_FIXED_SPLIT: Final = 256
"""Where every bit counts a split has always this length, however many sequences there are."""
_NO_TARGET: Final = 2**30
_OVERLAP: Final = 4
_TILE_BYTES: Final = 16384
"""Keys that one program reads at once, and as many values; three of each under way fit the smallest card."""
_MOST_TILE: Final = 128
_COMBINED: Final = 16
_LEAST_ROWS: Final = 16
_SELF_TEST_SEQUENCES: Final = 8
_SELF_TEST_TOKENS: Final = 6144
"""Of `flash.difference`."""


class SplitKvAttention:
    """An operation for pools of one shape, with the room that it needs: made once, since graphs know where that lies.

    `sequences` is how many there are at once, and `tokens` how many they have together.
    """

    def __init__(
        self,
        shape: AttentionShape,
        sequences: int,
        tokens: int,
        *,
        device: torch.device | str,
        is_deterministic: bool = False,
        pieces: Operation = flash,
    ) -> None:
        self._pieces = pieces
        self._shape = shape
        self._sequences = sequences
        self._block = triton.next_power_of_2(sequences)
        spread = triton.cdiv(_PROGRAMS_PER_PROCESSOR * processors(device), shape.kv_heads)
        self._least = _FIXED_SPLIT if is_deterministic else _LEAST_SPLIT
        self._target = _NO_TARGET if is_deterministic else spread
        self._programs = sequences + spread
        # Each sequence has at most one split that is not full. Sequences do not overlap, but for those that recorded
        # steps are tried with: of some hundred tokens each.
        splits = triton.cdiv(tokens, self._least) + _OVERLAP * sequences if is_deterministic else spread + sequences
        self._work = torch.zeros((splits, 3), dtype=torch.int32, device=device)
        self._firsts = torch.zeros(sequences + 1, dtype=torch.int32, device=device)
        self._partial = torch.zeros((splits, shape.heads, shape.head_size), dtype=torch.float32, device=device)
        self._stats = torch.zeros((splits, shape.heads, 2), dtype=torch.float32, device=device)
        self._planned: Layout | None = None

    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: Layout, scale: float | None
    ) -> torch.Tensor:
        """Attend; see `flash.Operation`."""
        sequences = len(layout.lengths)
        if layout.most_queries > 1 or len(query) != sequences or sequences > self._sequences:
            return self._pieces(query, keys, values, layout, scale)
        width = triton.next_power_of_2(self._shape.head_size)
        tile = min(_MOST_TILE, _TILE_BYTES // (width * keys.dtype.itemsize))
        if self._planned is not layout:  # once for all layers
            self._planned = layout
            kernels.plan_splits[(1,)](
                layout.starts,
                layout.lengths,
                self._work,
                self._firsts,
                sequences,
                self._target,
                len(self._work),
                LEAST=self._least,
                TILE=tile,
                BLOCK=self._block,
            )
        heads, kv_heads, size = self._shape.heads, self._shape.kv_heads, self._shape.head_size
        kernels.attend_splits[min(len(self._work), self._programs), kv_heads](
            query,
            keys,
            values,
            self._work,
            self._firsts,
            self._partial,
            self._stats,
            (scale or size**-0.5) * math.log2(math.e),
            sequences,
            query.stride(0),
            query.stride(1),
            keys.stride(0),
            keys.stride(1),
            GROUP=heads // kv_heads,
            ROWS=max(_LEAST_ROWS, triton.next_power_of_2(heads // kv_heads)),
            SIZE=size,
            WIDTH=width,
            TILE=tile,
            num_warps=4,
            num_stages=3,
        )
        output = query.new_empty((sequences, heads, size))
        kernels.combine_splits[sequences, heads](
            self._partial, self._stats, self._firsts, output, SIZE=size, WIDTH=width, BLOCK=_COMBINED, num_warps=4
        )
        return output


def why_not(shape: AttentionShape, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Say why the kernels cannot be used for a model on this device; None if they compute what they should."""
    room = (shape, _SELF_TEST_SEQUENCES, _SELF_TEST_TOKENS)
    try:
        worst = max(
            difference(
                shape,
                dtype,
                device,
                is_piece=False,
                operation=SplitKvAttention(*room, device=device, is_deterministic=is_deterministic),
            )
            for is_deterministic in (False, True)
        )
    except Exception as error:  # noqa: BLE001 - a compiler's errors have no common class
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None if worst <= TOLERANCE else f"it is off by {worst:.3g}"
