"""What does a model do, and can the encoder engine run it? Asked of its files, before anything is loaded.

Encoders read and do not write: they make vectors of texts, rank texts by a question, or sort them into classes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal, cast

from .model_directory import ModelDirectory, enumerate_names
from .model_files import ModelError
from .model_fit import (
    ENCODERS,
    MOST_LAYERS,
    OTHERS,
    TWO_PARTS,
    architectures,
    check_length,
    check_numbers,
    why_no_generator,
)
from .sentence_config import read_sentence_config

Kind = Literal["generate", "embed", "rerank", "classify"]
_LABELS: Final = "ForSequenceClassification"
_FILLERS: Final = ("ForMaskedLM", "ForPreTraining")
_NO_TEXT: Final = frozenset({"clip", "hubert", "layoutlm", "layoutlmv3", "siglip", "vit", "wav2vec2", "wavlm"})
"""Encoders of images and sounds, and of text by its place on a page."""
_COUNTS: Final = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_IN_LAYER: Final = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def kind_of(directory: Path, config: dict[str, Any]) -> Kind:
    """Say what a model does: write text, or read it to make vectors, to rank (one number), to classify (several)."""
    if why_no_generator(directory, config) is None:
        return "generate"
    if not any(name.endswith(_LABELS) for name in architectures(directory, config)[:1]):
        return "embed"
    return "rerank" if _label_count(config) == 1 else "classify"


def _label_count(config: dict[str, Any]) -> int:
    """Return how many numbers a classifier gives for a text; two if the configuration does not say it."""
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        return len(cast("dict[str, Any]", names))
    number = config.get("num_labels")
    return number if isinstance(number, int) else 2


def why_no_encoder(directory: Path, config: dict[str, Any]) -> str | None:
    """Say why nothing of ours reads texts with a model that writes none; None if it can."""
    kind, names = str(config.get("model_type") or ""), architectures(directory, config)
    named = names[0] if names else f"of type {kind}"
    if config.get("is_encoder_decoder") or kind in TWO_PARTS:
        return f"it is a model of an encoder and a decoder ({named})"
    if kind in _NO_TEXT:
        return f"it reads other than plain text ({named})"
    if named.endswith(_LABELS) or (directory / "modules.json").is_file():
        return None
    if kind in ENCODERS and (not names or named.endswith(("Model", *_FILLERS))):
        return None
    what = next((words for end, words in OTHERS.items() if named.endswith(end)), "a model without a head for text")
    return f"it is {what} ({named})"


def check_encoder(directory: Path, model: ModelDirectory, *, max_model_len: int = 0) -> None:
    """Raise ModelError if the encoder engine cannot run the model, or not with so many tokens in a text."""
    if why_no_generator(directory, model.config) is None:
        raise ModelError(f"{directory} writes text, and is no encoder: leave --engine out, or take --engine generate")
    why = why_no_encoder(directory, model.config)
    if why is not None:
        raise ModelError(
            f"{directory} cannot be served: {why}; there are engines for models that write text (…ForCausalLM), for "
            "encoders that make vectors of it, and for …ForSequenceClassification"
        )
    check_numbers(directory, model)
    _check_layers(directory, model)
    if kind_of(directory, model.config) == "embed":
        read_sentence_config(directory)
    check_length(directory, model, max_model_len)


def _check_layers(directory: Path, model: ModelDirectory) -> None:
    """Find layers that are missing or too many; what lacks within a layer the loader finds."""
    count = next((number for name in _COUNTS if isinstance(number := model.config.get(name), int)), None)
    of_layers = {name: int(found[1]) for name in sorted(model.tensors) if (found := _IN_LAYER.search(name))}
    if count is None or not of_layers:
        return
    over = [name for name, layer in of_layers.items() if layer >= count]
    if over:
        raise ModelError(
            f"{directory} has more layers than the {count} of its config.json: {enumerate_names(over)}; fetch the "
            "config.json that belongs to the weights"
        )
    seen = set(of_layers.values())
    missing = [str(layer) for layer in range(min(count, MOST_LAYERS)) if layer not in seen]
    if missing:
        raise ModelError(
            f"{directory} lacks layers that its config.json asks for ({count} of them): {enumerate_names(missing)}; "
            "fetch the model again, or the config.json that belongs to it"
        )
