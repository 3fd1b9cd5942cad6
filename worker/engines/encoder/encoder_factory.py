"""From a spec to an `encoder` engine: the model looked at, loaded, tried, and how much it computes at once measured."""

from __future__ import annotations

import gc
import logging
import time
from pathlib import Path
from typing import Final

from ...encoder_fit import Kind, check_encoder, kind_of
from ...model_directory import read_model_directory
from ...model_files import ModelError
from ..base import CannotLoadError, EngineSpec, Progress, Row
from ..factories import revision_of
from ..generate import preflight
from ..generate.hf_loader import dtype_of
from .encoder_engine import EncoderEngine
from .encoder_loader import LoadedEncoder, load_encoder, read_sentences
from .encoder_tasks import ClassifyTask, EmbedTask, EncoderTask, RerankTask
from .text_rows import TextRows

log = logging.getLogger(__name__)
OPTIONS: Final = frozenset({"threads", "batch_tokens", "pooling", "normalize", "memory_check"})
_SLOTS: Final = 256
"""Items at once: they fill the next batches, and cost a few kilobytes each."""
_STEP_S: Final = 0.5
"""How long a batch may take on a CPU: what arrives meanwhile waits for it."""
_LEAST_TOKENS: Final = 256
_MOST_TOKENS: Final = 16384
_SPARE_MIB: Final = 512
"""What a GPU is to have free beside the weights, to compute in."""
_TRIAL: Final = (8, 32)
"""Rows and tokens of the batch that is timed."""
_TOLERANCE: Final = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""Share of the largest number by which a row may differ beside others, in each type."""


def factory(spec: EngineSpec, progress: Progress) -> EncoderEngine:
    """Load the encoder of `spec`. Raises CannotLoadError with what is wrong with it."""
    _check_options(spec)
    kind = _kind(spec)
    preflight.check_device(spec)
    must_fit = spec.options.get("memory_check", "1") == "1"
    preflight.check_memory(spec, spare_bytes=_SPARE_MIB << 20, must_fit=must_fit)
    sentences = read_sentences(Path(spec.model_path), spec.options)
    loaded = load_encoder(spec, kind, sentences, progress)
    _check_alone(loaded, spec)
    batch_tokens = spec.count("batch_tokens", 0) or _batch_tokens(loaded)
    log.info("%s: %s, texts of up to %d tokens, %d in a batch", spec.model, kind, loaded.context, batch_tokens)
    gc.freeze()  # what torch and transformers made lives for ever: no pause and no exit walks it again
    return EncoderEngine(
        loaded,
        _task(loaded, spec),
        model=spec.model,
        revision=revision_of(spec),
        slots=spec.slots or _SLOTS,
        batch_tokens=batch_tokens,
    )


def _check_options(spec: EngineSpec) -> None:
    unknown = set(spec.options) - OPTIONS
    if unknown:
        known = ", ".join(sorted(OPTIONS))
        raise CannotLoadError(f"--engine-opt {', '.join(sorted(unknown))}: the encoder engine knows {known}")
    if spec.quantize != "none":
        raise CannotLoadError(f"--quantize {spec.quantize}: the encoder engine runs weights as they are; leave it out")
    for name in ("normalize", "memory_check"):
        if spec.options.get(name, "1") not in {"0", "1"}:
            raise CannotLoadError(f"--engine-opt {name}={spec.options[name]}: it is 1 (on) or 0 (off)")
    spec.count("threads", 1, least=1)
    spec.count("batch_tokens", 1, least=1)


def _kind(spec: EngineSpec) -> Kind:
    """Look at the files once more: a directory may have changed since its node looked, or nobody may have."""
    directory = Path(spec.model_path)
    try:
        contents = read_model_directory(directory)
        check_encoder(directory, contents, max_model_len=spec.max_model_len)
    except ModelError as error:
        raise CannotLoadError(str(error)) from None
    return kind_of(directory, contents.config)


def _task(loaded: LoadedEncoder, spec: EngineSpec) -> EncoderTask:
    is_embed = loaded.kind == "embed"
    try:
        texts = TextRows(
            Path(spec.model_path),
            context=loaded.context,
            vocabulary=loaded.vocabulary,
            prompt=loaded.sentences.prompt if is_embed else "",
            is_lowered=is_embed and loaded.sentences.is_lowered,
        )
    except ModelError as error:
        raise CannotLoadError(str(error)) from None
    if is_embed:
        width = loaded.forward([Row([0])]).shape[1]
        is_normalised = loaded.sentences.is_normalised
        return EmbedTask(texts, width=width, context=loaded.context, is_normalised=is_normalised)
    if loaded.kind == "rerank":
        return RerankTask(texts)
    return ClassifyTask(texts, labels=loaded.labels, context=loaded.context, is_multiple=loaded.is_multiple)


def _check_alone(loaded: LoadedEncoder, spec: EngineSpec) -> None:
    """Compare what a short row gives alone and beside a longer one: some models have no mask for padding."""
    words = [token % loaded.vocabulary for token in range(1, 1 + min(24, loaded.context))]
    short, long = Row(words[:3]), Row(words)
    alone, beside = loaded.forward([short])[0], loaded.forward([short, long])[0]
    if not bool(alone.isfinite().all()):
        raise CannotLoadError(f"{spec.model_path} computes numbers that are not finite: its files are damaged")
    if not bool(alone.any()):
        raise CannotLoadError(f"{spec.model_path} computes nothing but zeros: its weights are empty; fetch it again")
    off = float((alone - beside).abs().max() / alone.abs().max())
    if off > _TOLERANCE[dtype_of(spec)]:
        raise CannotLoadError(
            f"{spec.model_path} cannot be run here: what it says of a text depends on the texts beside it ({off:.0e})"
        )


def _batch_tokens(loaded: LoadedEncoder) -> int:
    """Return how many tokens a batch has at most: on a CPU as many as it computes in half a second."""
    if loaded.device != "cpu":
        return _MOST_TOKENS
    count, length = _TRIAL[0], min(_TRIAL[1], loaded.context)
    rows = [Row([1 % loaded.vocabulary] * length)] * count
    loaded.forward(rows)  # the first one is slow
    began_at = time.perf_counter()
    loaded.forward(rows)
    per_second = count * length / max(1e-6, time.perf_counter() - began_at)
    return int(min(_MOST_TOKENS, max(_LEAST_TOKENS, per_second * _STEP_S)))
