"""Any decoder that transformers runs with a plain causal attention: its own modules, with our attention inside.

Slower than `LlamaDecoder`, which knows its layers; the same to the rest of the engine.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from .attention import Attention, AttentionShape
from .hf_loader import untyped

NAME: Final = "zmqrt_pool"
"""Under which transformers knows our attention."""


def why_not(model: Any) -> str | None:  # noqa: ANN401 - transformers' models are untyped
    """Say why a model cannot be run here; None if it can."""
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    config = model.config.get_text_config()
    kinds: set[str] = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        window = {"sliding_attention"} if kinds == {"full_attention"} else set[str]()
        return f"its layers are not all plain attention ({', '.join(sorted(kinds | window))})"
    if getattr(config, "is_encoder_decoder", False):
        return "it has an encoder"
    return None


class HfDecoder:
    """A model as transformers built it; see `LlamaDecoder` for what the methods mean."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers' models are untyped
        _register()
        model.set_attn_implementation(NAME)
        self.shape = AttentionShape.of(model.config.get_text_config())
        self._model = model

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self._model.get_input_embeddings().weight.shape[0])

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Run one pass; return logits of `rows`, or of all."""
        output = self._model(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=0 if rows is None else rows,
            zmqrt_pool=attention,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _register() -> None:
    # No mask is registered beside it: the pool knows what each token sees. For a name without one transformers returns
    # early; for a registered one it looks at the positions first, and each prompt would wait for the device.
    untyped("transformers").AttentionInterface.register(NAME, _attend)


def _attend(
    module: Any,  # noqa: ANN401 - transformers' modules are untyped
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the pool knows what each token sees
    scaling: float | None = None,
    *,
    zmqrt_pool: Attention,
    **_ignored: object,
) -> tuple[torch.Tensor, None]:
    return zmqrt_pool.as_interface(module, query, key, value, scale=scaling), None
