"""How many tokens a model can see at once, from its configuration: its positions, and what scales them.

`max_position_embeddings` means different things: with some ways of stretching a rotary embedding it is what the model
was trained on, and the factor comes on top; with others the factor is in it. What transformers computes, and what other
servers serve, decides here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

POSITIONS: Final = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
)
"""Where families of models say how many positions they have; the first that is there counts."""
_SCALED_ALREADY: Final = ("default", "llama3", "longrope", "su", "mrope", "proportional")
"""Ways of stretching after which `max_position_embeddings` is the whole context."""
GROWING: Final = frozenset({"dynamic", "longrope", "su"})
"""Ways of stretching that depend on the length of a text, so that no one table of positions has what they compute."""
# fmt: off
_AFTER_PADDING: Final = frozenset({
    "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
})
# fmt: on
"""Families that count positions from behind the one of their padding: so many fewer are there for a text."""
_SCALED_FAMILIES: Final = ("gemma3", "gemma3_text", "gpt_oss")
"""Families that count their factor into `max_position_embeddings`, whichever the way."""


def context_of(config: dict[str, Any]) -> int | None:
    """Return the context of a model from its config.json; None if it does not say. Raises ValueError."""
    part = config.get("text_config")
    text = cast("dict[str, Any]", part) if isinstance(part, dict) and part else config
    found = [(name, text[name]) for name in POSITIONS if text.get(name) is not None]
    if not found:
        return None
    name, positions = found[0]
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
        raise ValueError(f"{name} is {positions!r}, which is no number of positions")
    if text.get("model_type") in _SCALED_FAMILIES:
        return positions
    if str(text.get("model_type")) in _AFTER_PADDING:
        padding = text.get("pad_token_id")
        return max(1, positions - 1 - (padding if isinstance(padding, int) else 1))
    return max([positions, *(_stretched(positions, scaling) for scaling in scalings(text))])


def scalings(text_config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what stretches the rotary embedding: for all layers, or for each kind of layer."""
    for name in ("rope_scaling", "rope_parameters"):
        found = text_config.get(name)
        if not isinstance(found, dict):
            continue
        scaling = cast("dict[str, Any]", found)
        if "rope_type" in scaling or "type" in scaling or "factor" in scaling:
            yield scaling
        yield from (cast("dict[str, Any]", each) for each in scaling.values() if isinstance(each, dict))


def kind_of(scaling: dict[str, Any]) -> str:
    """Name the way of stretching; older configurations call it `type`."""
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def _stretched(positions: int, scaling: dict[str, Any]) -> int:
    kind, factor = kind_of(scaling), scaling.get("factor")
    if kind in _SCALED_ALREADY or factor is None:
        return positions
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 <= factor < 1e6:
        raise ValueError(f"the factor of its rope_scaling is {factor!r}")
    original = scaling.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int) and original > 0:
        return int(original * factor)
    return int(positions * factor)
