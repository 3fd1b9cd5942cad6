"""The small operations between the matrix products of a decoder, each as one call: here in plain torch, for any device.

`kernel_ops.py` has the same as one GPU kernel each: at small batches their number decides how fast a model is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import rms_norm, silu

from .attention import Attention
from .sequence_table import DecodeInputs, SequenceTable
from .slot_sampler import SlotSampler

Turn = tuple[torch.Tensor, ...]
"""What `turn` makes for `rotate_and_store` of the same operations."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights [size] of the root-mean-square norms that some models (Qwen 3) apply to each query and key."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


class TorchOps:
    """Plain torch."""

    name = "torch"

    def add_norm(
        self, hidden: torch.Tensor, change: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a change to the residual stream [tokens, width]; return it, and its root-mean-square norm."""
        if change is not None:
            hidden = hidden + change
        return hidden, rms_norm(hidden, hidden.shape[-1:], weight, eps)

    def turn(self, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> Turn:
        """Prepare what each layer turns by, from cosines and sines of all positions, [positions, size] each."""
        return cos[positions], sin[positions]

    def rotate_and_store(
        self,
        heads: torch.Tensor,
        turn: Turn,
        attention: Attention,
        layer: int,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Turn queries and keys by their positions, store keys and values, return queries [tokens, heads, size].

        `heads` [tokens, heads + 2 x kv heads, size] holds queries, keys and values in this order. Pairs
        (i, i + size / 2) of a head are turned (Su et al. 2021, as Llama lays it out), after the norm of each head.
        """
        kv_heads = attention.shape.kv_heads
        cos, sin = turn[0].unsqueeze(1), turn[1].unsqueeze(1)
        turning, value = heads[:, :-kv_heads], heads[:, -kv_heads:]
        if norms is not None:
            query = rms_norm(turning[:, :-kv_heads], turning.shape[2:], norms.query, norms.eps)
            key = rms_norm(turning[:, -kv_heads:], turning.shape[2:], norms.key, norms.eps)
            turning = torch.cat((query, key), dim=1)
        low, high = turning.chunk(2, dim=-1)
        turned = turning * cos + torch.cat((-high, low), dim=-1) * sin
        attention.store(layer, turned[:, -kv_heads:], value)
        return turned[:, :-kv_heads]

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return SiLU of the first half times the second half: [tokens, 2 x width] to [tokens, width]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up

    def inputs(self, slots: SequenceTable, rows: torch.Tensor) -> DecodeInputs:
        """Return what a decode step of some slots (int64 [rows]) begins with."""
        return slots.inputs(rows)

    def sampler(self, slots: SequenceTable) -> SlotSampler:
        """Return what draws for the sequences of a table."""
        return SlotSampler(slots)
