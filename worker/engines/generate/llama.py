"""Llama and its family (SmolLM, Mistral, Qwen 2 and 3) with few, large operations: one matrix for query, key and value,
one for gate and up, and no object between the layers. The weights are those of a model that transformers has loaded.

It knows one step: ids and positions in, logits of some rows out. Where keys and values lie is the attention's affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.functional import embedding, linear

from ...context import GROWING, kind_of, scalings
from .attention import Attention, AttentionShape
from .ops import HeadNorms, TorchOps, Turn
from .quantize import is_quantised, method_of

FAMILY: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are what `_Layer` says."""


@dataclass(frozen=True, slots=True)
class _Product:
    """What multiplies one input: a matrix made of several, or several whose bits cannot be put together."""

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor | None, ...]

    def of(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiply; the results lie beside each other."""
        if len(self.weights) == 1:
            return linear(hidden, self.weights[0], self.biases[0])
        products = [linear(hidden, weight, bias) for weight, bias in zip(self.weights, self.biases, strict=True)]
        return torch.cat(products, dim=-1)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer; the norms of heads are None where a model has none."""

    norm: torch.Tensor
    qkv: _Product
    head_norms: HeadNorms | None
    out: _Product
    mlp_norm: torch.Tensor
    gate_up: _Product
    down: _Product


def why_not(config: Any) -> str | None:  # noqa: ANN401 - transformers' configurations are untyped
    """Say why a model cannot be run by `LlamaDecoder`; None if it can."""
    if config.model_type not in FAMILY:
        return f"model type {config.model_type} is none of {', '.join(FAMILY)}"
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        return "its MLP has a bias, or another activation than SiLU"
    if method_of(config) not in {"", "torchao"}:
        return f"only its own modules know how to multiply with its weights ({method_of(config)})"
    growing = {kind_of(scaling) for scaling in scalings(config.to_dict())} & GROWING
    if growing:
        return f"its rotary embedding changes with the length of a text ({', '.join(sorted(growing))})"
    return None


class LlamaDecoder:
    """A model of the family on one device."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - transformers' models are untyped
        operations: TorchOps | None = None,
        context: int = 0,
    ) -> None:
        """`context`: how many positions there are; a stretched embedding has more than its model was made with."""
        config = model.config
        self.operations = operations or TorchOps()
        """How the small operations between the matrix products are computed."""
        self._eps = float(config.rms_norm_eps)
        self.shape = AttentionShape.of(config)
        self._layers = [_take(layer, self._eps) for layer in model.model.layers]
        self._embed: torch.Tensor = model.model.embed_tokens.weight.data
        self._norm: torch.Tensor = model.model.norm.weight.data
        self._head: torch.Tensor = model.lm_head.weight.data
        self._cos, self._sin = _rotations(model, context or int(config.max_position_embeddings))

    @property
    def dtype(self) -> torch.dtype:
        """The type of its weights."""
        return self._embed.dtype

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self._embed.shape[0])

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Run one pass of `ids` [tokens] at `positions`; return logits [rows, vocabulary] of some rows, or of all."""
        hidden = embedding(ids, self._embed)
        turn = self.operations.turn(self._cos, self._sin, positions)
        change: torch.Tensor | None = None
        for index, layer in enumerate(self._layers):
            hidden, normed = self.operations.add_norm(hidden, change, layer.norm, self._eps)
            output = attention.attend(index, self._query(index, layer, normed, turn, attention))
            change = layer.out.of(output.reshape(len(hidden), -1))
            hidden, normed = self.operations.add_norm(hidden, change, layer.mlp_norm, self._eps)
            change = layer.down.of(self.operations.gate(layer.gate_up.of(normed)))
        if rows is not None and change is not None:
            hidden, change = hidden[rows], change[rows]
        _, last = self.operations.add_norm(hidden, change, self._norm, self._eps)
        return linear(last, self._head)

    def _query(
        self,
        index: int,
        layer: _Layer,
        normed: torch.Tensor,
        turn: Turn,
        attention: Attention,
    ) -> torch.Tensor:
        """Compute queries, keys and values of a layer; keys and values go to the pool, queries are returned."""
        heads = layer.qkv.of(normed).view(len(normed), -1, self.shape.head_size)
        return self.operations.rotate_and_store(heads, turn, attention, index, layer.head_norms)


def _rotations(model: Any, positions: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
    """Compute cosine and sine of every position once, as the model's own module does."""
    at = torch.arange(positions, device=model.device).unsqueeze(0)
    like = torch.empty(0, dtype=model.dtype, device=model.device)
    cos, sin = model.model.rotary_emb(like, position_ids=at)
    return cos[0], sin[0]


def _take(layer: Any, eps: float) -> _Layer:  # noqa: ANN401 - transformers' modules are untyped
    """Fuse the weights of a layer, and let go of the originals: both at once would not fit."""
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        norm=layer.input_layernorm.weight.data,
        qkv=_product(attention.q_proj, attention.k_proj, attention.v_proj),
        head_norms=HeadNorms(attention.q_norm.weight.data, attention.k_norm.weight.data, eps)
        if hasattr(attention, "q_norm")
        else None,
        out=_product(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.data,
        gate_up=_product(mlp.gate_proj, mlp.up_proj),
        down=_product(mlp.down_proj),
    )


def _product(*modules: Any) -> _Product:  # noqa: ANN401 - same
    weights = [module.weight.data for module in modules]
    biases = [None if module.bias is None else module.bias.data for module in modules]
    if len(modules) == 1 or any(is_quantised(weight) for weight in weights):
        return _Product(tuple(weights), tuple(biases))
    fused = torch.cat(weights)
    for module in modules:
        module.weight.data = fused.new_empty(0)
    given = [bias for bias in biases if bias is not None]
    return _Product((fused,), (torch.cat(given) if given else None,))
