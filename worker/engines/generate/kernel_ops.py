"""The small operations of a decoder as one GPU kernel each; matrix products stay with cuBLAS. Triton comes along with
CUDA builds of torch.

Without a GPU the kernels run under Triton's interpreter (TRITON_INTERPRET=1), which is how they are tested.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton

from . import kernel_sampler
from . import kernels as untyped_kernels
from .attention import Attention, AttentionShape
from .flash import FlashAttention, Layout
from .kernel_sampler import KernelSampler
from .ops import TorchOps
from .sequence_table import SequenceTable

kernels: Any = untyped_kernels
_GATE_BLOCK: Final = 1024
_TOLERANCE: Final = 0.07
"""Of values around one to eight, in bfloat16: a rounding or two apart. Of hashes and draws the number is counted."""


class KernelOps(TorchOps):
    """One kernel for each."""

    name = "triton"

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

    def rotate_and_store(
        self,
        heads: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        attention: Attention,
        layer: int,
    ) -> torch.Tensor:
        """See `TorchOps`."""
        tokens, total, size = heads.shape
        kv_heads = attention.shape.kv_heads
        n_query = total - 2 * kv_heads
        query = heads.new_empty((tokens, n_query, size))
        keys, values = attention.keys(layer), attention.values(layer)
        kernels.rotate_and_store[(tokens, total)](
            heads,
            turn[0],
            turn[1],
            attention.places,
            query,
            keys,
            values,
            keys.stride(0),
            keys.stride(1),
            n_query,
            kv_heads,
            size // 2,
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

    def sampler(self, slots: SequenceTable) -> KernelSampler:
        """See `TorchOps`."""
        return KernelSampler(slots)


def why_not(dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Say why the kernels cannot be used on a device; None if each does there what plain torch does."""
    try:
        worst = max(differences(dtype, device).items(), key=lambda pair: pair[1])
    except Exception as error:  # noqa: BLE001 - a compiler's errors have no common class
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None if worst[1] <= _TOLERANCE else f"{worst[0]} is off by {worst[1]:.3g}"


def differences(dtype: torch.dtype, device: torch.device | str) -> dict[str, float]:
    """Return how far each operation is from plain torch, at worst, on random numbers around one."""
    generator = torch.Generator(device=device).manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device).to(dtype)

    def off(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.nan_to_num((one.float() - other.float()).abs().max(), nan=torch.inf))

    ours, plain = KernelOps(), TorchOps()
    hidden, change, weight = random(5, 576), random(5, 576), random(576)
    summed, normed = (
        max(off(one, other) for one, other in zip(*pair, strict=True))
        for pair in (
            (ours.add_norm(hidden, None, weight, 1e-5), plain.add_norm(hidden, None, weight, 1e-5)),
            (ours.add_norm(hidden, change, weight, 1e-5), plain.add_norm(hidden, change, weight, 1e-5)),
        )
    )
    gates = random(3, 3000)
    shape = AttentionShape(layers=2, heads=6, kv_heads=2, head_size=64)
    places = torch.tensor([3, 49, 7], device=device)
    none = places.int()
    pools = [FlashAttention(shape, 50, dtype=dtype, device=device) for _ in range(2)]
    for pool in pools:
        pool.prepare(Layout(places, none, none, none, 1, 1))
    heads, turn = random(3, 10, 64), (random(3, 64), random(3, 64))
    queries = [one.rotate_and_store(heads, turn, pool, 1) for one, pool in zip((ours, plain), pools, strict=True)]
    stored = max(off(pools[0].keys(1), pools[1].keys(1)), off(pools[0].values(1), pools[1].values(1)))
    return {
        "add_norm": max(summed, normed),
        "gate": off(ours.gate(gates), plain.gate(gates)),
        "rotate_and_store": max(off(*queries), stored),
        **kernel_sampler.differences(dtype, device),
    }
