"""Load an encoder with transformers, and look at what was read before anything is served. Knows no request."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch

from ...context import context_of
from ...encoder_fit import Kind
from ...model_files import ModelError, read_json_object
from ...sentence_config import SentenceConfig, read_sentence_config
from ..base import CannotLoadError, EngineSpec, Progress, Row
from ..generate.hf_loader import read_weights
from ..generate.loaded_check import check_numbers, check_report
from .pooling import pool

_HEADS: Final = re.compile(
    r"^(cls|lm_head|predictions|vocab_\w+|pre_classifier|classifier|qa_outputs|\w+_predictions|generator_\w+|head|decoder"
    r"|pooler|\w+\.pooler)\."
)
"""What stands on top of an encoder and takes no part in its vectors: heads that it was trained with, and the layer
behind the first token that nobody pools by."""
_MOST_POSITIONS: Final = 1 << 20
"""Tokenizers say 10**30 where they mean that there is no bound."""


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """A model on its device, and what its files say. `forward` is all that computes."""

    model: Any
    kind: Kind
    context: int
    vocabulary: int
    sentences: SentenceConfig
    has_text_numbers: bool
    device: str

    @property
    def padding(self) -> int:
        """The token that stands in for none; some families count positions from it."""
        token = self.model.config.pad_token_id
        return token if isinstance(token, int) else 0

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        names = cast("dict[int, str]", self.model.config.id2label)
        return [str(names[index]) for index in sorted(names)]

    @property
    def is_multiple(self) -> bool:
        """Whether several classes may hold at once."""
        return bool(self.model.config.problem_type == "multi_label_classification")

    @torch.inference_mode()
    def forward(self, rows: list[Row]) -> torch.Tensor:
        """Compute rows together; return the numbers of each as a row of float32 on the host."""
        width = max(len(row.token_ids) for row in rows)
        given = {
            "input_ids": self._padded([row.token_ids for row in rows], width, self.padding),
            "attention_mask": self._padded([[1] * len(row.token_ids) for row in rows], width, 0),
        }
        if self.has_text_numbers:
            numbers = [row.text_numbers or [0] * len(row.token_ids) for row in rows]
            given["token_type_ids"] = self._padded(numbers, width, 0)
        output = self.model(**given)
        if self.kind != "embed":
            return cast("torch.Tensor", output.logits.float().cpu())
        vectors = pool(
            output.last_hidden_state,
            given["attention_mask"],
            self.sentences.pooling,
            is_normalised=self.sentences.is_normalised,
        )
        return vectors.cpu()

    def _padded(self, rows: list[list[int]], width: int, padding: int) -> torch.Tensor:
        return torch.tensor([row + [padding] * (width - len(row)) for row in rows], device=self.device)


def load_encoder(spec: EngineSpec, kind: Kind, sentences: SentenceConfig, progress: Progress) -> LoadedEncoder:
    """Load `spec.model_path`. Raises CannotLoadError that names what is not as it should be."""
    model, report = _read(spec, "AutoModel" if kind == "embed" else "AutoModelForSequenceClassification", progress)
    check_report(_without_heads(report) if kind == "embed" else report, spec.model_path)
    progress("loading", 100.0)
    progress("warming", 0.0)
    check_numbers(model.named_parameters(), spec.model_path)
    model.eval()
    model.config.use_cache = False  # a decoder that makes vectors would keep keys and values of every layer
    if kind != "embed" and not isinstance(model.config.pad_token_id, int):
        raise CannotLoadError(
            f"{spec.model_path}/config.json names no pad_token_id, and texts are computed side by side"
        )
    return LoadedEncoder(
        model=model,
        kind=kind,
        context=_context(model.config.to_dict(), sentences, spec),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        sentences=sentences,
        has_text_numbers=_has_text_numbers(model, Path(spec.model_path)),
        device=spec.device if spec.device.startswith("cuda") else "cpu",
    )


def read_sentences(directory: Path, options: Mapping[str, str]) -> SentenceConfig:
    """Read how vectors are made. Raises CannotLoadError."""
    try:
        return read_sentence_config(directory).with_options(options)
    except ModelError as error:
        raise CannotLoadError(str(error)) from None


def _read(spec: EngineSpec, model_class: str, progress: Progress) -> tuple[Any, dict[str, Any]]:
    try:
        return read_weights(spec, progress, model_class, {})
    except CannotLoadError as error:
        if "its attention cannot be replaced" not in str(error):
            raise
    eager = {"attn_implementation": "eager"}  # deberta, and what else has an attention of its own
    return read_weights(spec, progress, model_class, eager)


def _without_heads(report: dict[str, Any]) -> dict[str, Any]:
    names = ("missing_keys", "unexpected_keys")
    return report | {name: [key for key in report[name] if not _HEADS.search(key)] for name in names}


def _has_text_numbers(model: Any, directory: Path) -> bool:  # noqa: ANN401 - transformers is badly typed
    """Say whether the model is told a first text from a second, as its tokenizer's configuration has it, or it can."""
    names = read_json_object(directory / "tokenizer_config.json").get("model_input_names")
    if isinstance(names, list) and "token_type_ids" not in names:
        return False
    types = getattr(model.config, "type_vocab_size", 0) or 0
    return types > 1 and "token_type_ids" in inspect.signature(model.forward).parameters


def _context(config: dict[str, Any], sentences: SentenceConfig, spec: EngineSpec) -> int:
    """Return the longest text: what model, sentence model, tokenizer and operator allow."""
    try:
        positions = context_of(config)
    except ValueError as error:
        raise CannotLoadError(f"{spec.model_path}/config.json: {error}") from None
    if positions is not None and spec.max_model_len > positions:
        raise CannotLoadError(f"--max-model-len {spec.max_model_len} is more than the {positions} tokens of the model")
    named = read_json_object(Path(spec.model_path) / "tokenizer_config.json").get("model_max_length")
    by_tokenizer = int(named) if isinstance(named, int | float) and 0 < named < _MOST_POSITIONS else 0
    bounds = [bound for bound in (positions, sentences.max_tokens, by_tokenizer, spec.max_model_len) if bound]
    if not bounds:
        raise CannotLoadError(f"{spec.model_path} does not say how many tokens it reads; say so by --max-model-len")
    return min(bounds)
