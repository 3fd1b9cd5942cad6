"""The small operations between the matrix products of a decoder, each as one call: here in plain torch, for any device.

`kernel_ops.py` has the same as one GPU kernel each: at small batches their number decides how fast a model is.
"""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm, silu

from ..gumbel import GumbelNoise
from .attention import Attention


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

    def rotate_and_store(
        self,
        heads: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor],
        attention: Attention,
        layer: int,
    ) -> torch.Tensor:
        """Turn queries and keys by their positions, store keys and values, return queries [tokens, heads, size].

        `heads` [tokens, heads + 2 x kv heads, size] holds queries, keys and values in this order; `turn` the cosines
        and sines of each token's position, [tokens, size] each. Pairs (i, i + size / 2) of a head are turned (Su et
        al. 2021, as Llama lays it out).
        """
        kv_heads = attention.shape.kv_heads
        cos, sin = turn[0].unsqueeze(1), turn[1].unsqueeze(1)
        turning, value = heads[:, :-kv_heads], heads[:, -kv_heads:]
        low, high = turning.chunk(2, dim=-1)
        turned = turning * cos + torch.cat((-high, low), dim=-1) * sin
        attention.store(layer, turned[:, -kv_heads:], value)
        return turned[:, :-kv_heads]

    def gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return SiLU of the first half times the second half: [tokens, 2 x width] to [tokens, width]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up

    def draw(
        self, scores: torch.Tensor, temperature: torch.Tensor, states: torch.Tensor, noise: GumbelNoise
    ) -> torch.Tensor:
        """Return the argmax of each row of scores / temperature + noise, the lowest id of equals: int64 [rows].

        Rows of temperature 0 are taken as they are. `scores` [rows, vocabulary] and `temperature` [rows] are float32,
        `states` [rows] int32 (`gumbel.row_states`).
        """
        is_greedy = (temperature == 0).unsqueeze(1)
        divided = scores / temperature.unsqueeze(1).masked_fill(is_greedy, 1.0)
        return torch.where(is_greedy, scores, divided + noise.draw(states)).argmax(dim=-1)
