"""The small operations of a decoder as one GPU kernel each; matrix products stay with cuBLAS. Triton comes along with
CUDA builds of torch.

Without a GPU the kernels run under Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import torch
import triton

from ..base import SamplingParams
from . import kernel_sampler, preflight
from . import kernels as untyped_kernels
from .attention import Attention, AttentionShape
from .flash import FlashAttention, Layout
from .kernel_sampler import KernelSampler
from .ops import HeadNorms, TorchOps, Turn
from .sequence_table import DecodeInputs, SequenceTable
from .slot_sampler import SlotSampler
from .transfers import Transfers

kernels: Any = untyped_kernels
_Compare = Callable[[torch.dtype, torch.device | str], dict[str, float]]
_GATE_BLOCK: Final = 1024
_TOLERANCE: Final = 0.07
"""Of values around one to eight, in bfloat16: a rounding or two apart. Of hashes and draws the number is counted."""


class KernelOps(TorchOps):
    """One kernel for each."""

    name = "triton"

    def __init__(self, *, has_sampler: bool = True) -> None:
        self._has_sampler = has_sampler

    def add_norm(
        self, hidden: torch.Tensor, change: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `TorchOps`."""
        tokens, width = hidden.shape
        if not tokens:
            return super().add_norm(hidden, change, weight, eps)
        block = triton.next_power_of_2(width)
        summed = hidden if change is None else torch.empty_like(hidden)
        normed = torch.empty_like(hidden)
        kernels.add_norm[(tokens,)](
            hidden,
            hidden if change is None else change,
            weight,
            summed,
            normed,
            width,
            eps,
            HAS_CHANGE=change is not None,
            BLOCK=block,
            num_warps=min(max(block // 256, 1), 16),
        )
        return summed, normed

    def turn(self, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> Turn:
        """See `TorchOps`: each layer looks up by itself, which is two kernels less."""
        return cos, sin, positions

    def rotate_and_store(
        self,
        heads: torch.Tensor,
        turn: Turn,
        attention: Attention,
        layer: int,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """See `TorchOps`."""
        tokens, total, size = heads.shape
        kv_heads = attention.shape.kv_heads
        n_query = total - 2 * kv_heads
        query = heads.new_empty((tokens, n_query, size))
        keys, values = attention.keys(layer), attention.values(layer)
        kernels.rotate_and_store[(tokens, total)](
            heads,
            *turn,
            attention.places,
            heads if norms is None else norms.query,
            heads if norms is None else norms.key,
            query,
            keys,
            values,
            keys.stride(0),
            keys.stride(1),
            n_query,
            kv_heads,
            size // 2,
            0.0 if norms is None else norms.eps,
            HAS_NORM=norms is not None,
            BLOCK=triton.next_power_of_2(size // 2),
            num_warps=1,
        )
        return query

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `TorchOps`."""
        tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((tokens, width))
        kernels.gate[(tokens, triton.cdiv(width, _GATE_BLOCK))](gate_up, out, width, BLOCK=_GATE_BLOCK)
        return out

    def inputs(self, slots: SequenceTable, rows: torch.Tensor) -> DecodeInputs:
        """See `TorchOps`."""
        count = len(rows)
        token_ids, positions, places = (torch.empty_like(rows) for _ in range(3))
        starts = torch.empty(count + 1, dtype=torch.int32, device=rows.device)
        lengths = torch.empty(count, dtype=torch.int32, device=rows.device)
        block = triton.next_power_of_2(count + 1)
        kernels.read_inputs[(1,)](
            rows, slots.table, token_ids, positions, places, starts, lengths, count, BLOCK=block, num_warps=1
        )
        return DecodeInputs(token_ids, positions, places, starts, lengths)

    def sampler(self, slots: SequenceTable) -> SlotSampler:
        """See `TorchOps`."""
        return KernelSampler(slots) if self._has_sampler else super().sampler(slots)


def working(dtype: torch.dtype, device: torch.device | str) -> tuple[TorchOps, str | None]:
    """Return the operations that do on a device what plain torch does there, and why there are no kernels for the rest.

    A logarithm rounds otherwise on each device, and may draw another token: that is no reason to do without the others.
    """
    why_not = _why_not(_differences, dtype, device)
    if why_not is not None:
        return TorchOps(), why_not
    why_not = _why_not(kernel_sampler.differences, dtype, device)
    return KernelOps(has_sampler=why_not is None), why_not


def _why_not(compare: _Compare, dtype: torch.dtype, device: torch.device | str) -> str | None:
    try:
        worst = max(compare(dtype, device).items(), key=lambda pair: pair[1])
    except Exception as error:  # noqa: BLE001 - a compiler's errors have no common class
        return preflight.why_no_kernels(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return None if worst[1] <= _TOLERANCE else f"{worst[0]} is off by {worst[1]:.3g}"


def differences(dtype: torch.dtype, device: torch.device | str) -> dict[str, float]:
    """Return how far each operation is from plain torch, at worst; of hashes and draws, how many are others."""
    return {**_differences(dtype, device), **kernel_sampler.differences(dtype, device)}


def _differences(dtype: torch.dtype, device: torch.device | str) -> dict[str, float]:
    """Compare all but what draws, on random numbers around one."""
    generator = torch.Generator(device=device).manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    gates = random(3, 3000)
    return {
        "add_norm": max(_off_in_norm(random(5, 576), change, random(576)) for change in (None, random(5, 576))),
        "gate": _off(KernelOps().gate(gates), TorchOps().gate(gates)),
        "rotate_and_store": max(
            _off_in_turn(random(3, 10, 64), random(9, 64), norms)
            for norms in (None, HeadNorms(random(64).sigmoid(), random(64).sigmoid(), 1e-6))
        ),
        "inputs": _off_in_inputs(device),
    }


def _off(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nan_to_num((one.float() - other.float()).abs().max(), nan=torch.inf))


def _off_in_norm(hidden: torch.Tensor, change: torch.Tensor | None, weight: torch.Tensor) -> float:
    ours, right = (one.add_norm(hidden, change, weight, 1e-5) for one in (KernelOps(), TorchOps()))
    return max(map(_off, ours, right))


def _off_in_turn(heads: torch.Tensor, angles: torch.Tensor, norms: HeadNorms | None) -> float:
    """Compare queries, and what lies in the pools afterwards."""
    shape = AttentionShape(layers=2, heads=6, kv_heads=2, head_size=64)
    places, positions = torch.tensor([[3, 49, 7], [8, 0, 5]], device=heads.device).unbind()
    found: list[tuple[torch.Tensor, ...]] = []
    for operations in (KernelOps(), TorchOps()):
        pool = FlashAttention(shape, 50, dtype=heads.dtype, device=heads.device)
        pool.prepare(Layout(places, places.int(), places.int(), places.int(), 1, 1))
        turn = operations.turn(angles.cos(), angles.sin(), positions)
        query = operations.rotate_and_store(heads, turn, pool, 1, norms)
        found.append((query, pool.keys(1), pool.values(1)))
    return max(map(_off, *found))


def _off_in_inputs(device: torch.device | str) -> float:
    transfers = Transfers(device)
    transfers.settle()
    with transfers.computing():
        table = kernel_sampler.table_of([SamplingParams()] * 5, 10, transfers)
        rows = torch.tensor([2, 0, 5, 4], device=device)
        ours, right = (dataclasses.astuple(one.inputs(table, rows)) for one in (KernelOps(), TorchOps()))
        return max(map(_off, ours, right))
