"""From a spec to a `generate` engine: which decoder runs the model, on what, and how large its pool is."""

from __future__ import annotations

import dataclasses
import gc
import logging
from typing import Any, Final

import msgspec
import torch

from ...context import GROWING, kind_of, scalings
from ..base import CannotLoadError, EngineSpec, Progress
from . import flash, hf_decoder, llama, preflight, self_test
from .device_runner import DeviceRunner
from .engine import GenerateEngine
from .hf_loader import Loaded, load
from .ops import TorchOps
from .prompt_pace import PromptPace
from .schedule import SchedulerLimits
from .torch_runner import Decoder, TorchRunner

log = logging.getLogger(__name__)
OPTIONS: Final = frozenset(
    {"threads", "kv_mib", "chunk", "reuse", "path", "deterministic", "graphs", "kernels", "memory_check"}
)
PATHS: Final = ("auto", "fused", "modules")
_CPU_ROWS: Final = 16
_CUDA_ROWS: Final = 64
"""Requests beside each other unless `--slots` says otherwise: a step costs little more for the next row."""
_CPU_CHUNK: Final = 128
"""Of the mode in which pieces are all alike. Else they are as long as measured times allow (prompt_pace.py)."""
_CUDA_CHUNK: Final = 512
_CPU_KV_MIB: Final = 1024
_CUDA_KV_SHARE: Final = 0.9
_CUDA_SPARE_MIB: Final = 1024
"""Of what is free after loading the pool takes so much, and leaves at least this: a step and the graphs need it."""
_LEAST_CONTEXT: Final = 64
_CUDA_DEPTH: Final = 2
"""Steps under way: one is computed while the one before it is read and the next one planned."""


def factory(spec: EngineSpec, progress: Progress) -> GenerateEngine:
    """Load the model of `spec`, choose how to run it, and say which way that is.

    A self-test that the fused decoder fails is a fault of ours: the model is then loaded anew for transformers' own
    modules. One that those fail is final, for nothing that it says could be believed.
    """
    _check(spec)
    preflight.check_device(spec)
    preflight.check_memory(spec, spare_bytes=_CUDA_SPARE_MIB << 20, must_fit=_is_on(spec, "memory_check", default=True))
    engine, words = None, ""
    try:
        engine = _make(spec, progress, spec.options.get("path", "auto"))
    except self_test.SelfTestError as error:
        words = str(error)
    if engine is None:  # here, where the error no longer holds on to the model
        log.warning("%s: %s; it is loaded anew for the path 'modules'. Please report this", spec.model, words)
        gc.collect()
        if spec.device.startswith("cuda"):
            torch.cuda.empty_cache()
        engine = _make(spec, progress, "modules")
    gc.freeze()  # what torch and transformers made lives for ever: no pause and no exit walks it again
    return engine


def _make(spec: EngineSpec, progress: Progress, wanted: str) -> GenerateEngine:
    """Load, choose, and compare with transformers. Raises SelfTestError if another path may do better."""
    loaded = load(spec, progress)
    model = loaded.model
    spec = msgspec.structs.replace(spec, slots=spec.slots or (_CUDA_ROWS if loaded.is_cuda else _CPU_ROWS))
    path, why = _choose(spec.model, wanted, model)
    log.info("model %s runs on the path %r%s", spec.model, path, f": {why}" if why else "")
    reference = self_test.Reference(model, spec.model_path)
    loaded = _bound_growth(spec, loaded)
    progress("warming", 0.0)
    operations = _operations(spec, loaded)
    is_fused = path == "fused"
    decoder = llama.LlamaDecoder(model, operations, loaded.context) if is_fused else hf_decoder.HfDecoder(model)
    engine = _engine(spec, loaded, decoder, operations, progress)
    try:
        reference.check(engine)
    except self_test.SelfTestError as error:
        if is_fused and wanted == "auto":
            raise
        raise CannotLoadError(f"{spec.model} cannot be run here: {error}") from error
    progress("warming", 100.0)
    return engine


def _bound_growth(spec: EngineSpec, loaded: Loaded) -> Loaded:
    """Say it if a rotary embedding changes when a text grows: transformers turns a whole batch by its longest text.

    Where the same numbers are promised in any batch, the context ends before that.
    """
    config = loaded.model.config.get_text_config().to_dict()
    stretched = [scaling for scaling in scalings(config) if kind_of(scaling) in GROWING]
    if not stretched:
        return loaded
    original = int(stretched[0].get("original_max_position_embeddings") or config["max_position_embeddings"])
    if loaded.context <= original:
        return loaded
    text = f"beyond {original} tokens a text changes how all in its batch are computed"
    if not _is_on(spec, "deterministic", default=False):
        log.warning("%s; --max-model-len %d rules that out", text, original)
        return loaded
    if spec.max_model_len > original:
        raise CannotLoadError(f"--engine-opt deterministic=1: {text}; --max-model-len {original} is the most")
    log.warning("%s; with deterministic=1 the context is bounded to that", text)
    return dataclasses.replace(loaded, context=original)


def _engine(
    spec: EngineSpec, loaded: Loaded, decoder: Decoder, operations: TorchOps, progress: Progress
) -> GenerateEngine:
    options = spec.options
    dtype, device = loaded.model.dtype, loaded.model.device
    kv_tokens = plan_tokens(spec, loaded)
    limits = SchedulerLimits(
        slots=spec.slots,
        context=min(loaded.context, kv_tokens),
        chunk_tokens=int(options.get("chunk", _CUDA_CHUNK if loaded.is_cuda else _CPU_CHUNK)),
        may_reuse=_is_on(spec, "reuse", default=True),
        is_deterministic=_is_on(spec, "deterministic", default=False),
    )
    runner: TorchRunner | DeviceRunner
    why_not = flash.why_not(decoder.shape, dtype, device) if loaded.is_cuda else "there is no GPU"
    if why_not is None:
        limits.depth = _CUDA_DEPTH
        runner = DeviceRunner(decoder, kv_tokens, limits, dtype=dtype, device=device, operations=operations)
        if _is_on(spec, "graphs", default=True):
            _record(runner, progress)
    else:
        if loaded.is_cuda:
            log.warning("flash attention is not used, and many sequences at once will be slow: %s", why_not)
        runner = TorchRunner(decoder, kv_tokens, limits, dtype=dtype, device=device)
    is_paced = not (loaded.is_cuda or limits.is_deterministic or "chunk" in options)
    pace = PromptPace() if is_paced else None
    return GenerateEngine(runner, kv_tokens=kv_tokens, limits=limits, eos_ids=sorted(loaded.eos_ids), pace=pace)


def _record(runner: DeviceRunner, progress: Progress) -> None:
    try:
        runner.record(lambda percent: progress("warming", percent))
    except Exception as error:  # noqa: BLE001 - whatever a model does that cannot be recorded, it can still be called
        log.warning("decode steps are not recorded as graphs, and small batches will be slow: %s", error)


def _operations(spec: EngineSpec, loaded: Loaded) -> TorchOps:
    """Take one kernel for each small operation where that works, else plain torch."""
    if not loaded.is_cuda or not _is_on(spec, "kernels", default=True):
        return TorchOps()
    try:
        from . import kernel_ops
    except ImportError as error:
        log.warning("Triton's kernels are not used: %s", error)
        return TorchOps()
    why_not = kernel_ops.why_not(loaded.model.dtype, loaded.model.device)
    if why_not is None:
        return kernel_ops.KernelOps()
    log.warning("Triton's kernels are not used: %s", preflight.why_no_kernels(why_not))
    return TorchOps()


def plan_tokens(spec: EngineSpec, loaded: Loaded) -> int:
    """Size the pool: at most every slot full, and no more than memory bears, if need be less than one full context.

    Raises ValueError if there is no room for a request at all, or none for as large a one as was asked for.
    """
    if "kv_mib" in spec.options:
        budget = int(float(spec.options["kv_mib"]) * 2**20)
    elif loaded.is_cuda:
        free, _ = torch.cuda.mem_get_info(spec.device)
        budget = min(int(free * _CUDA_KV_SHARE), free - (_CUDA_SPARE_MIB << 20))
    else:
        budget = _CPU_KV_MIB << 20
    affordable = max(0, budget) // loaded.kv_bytes_per_token
    lack = ValueError if loaded.is_cuda and "kv_mib" not in spec.options else CannotLoadError  # others may free memory
    if affordable < min(_LEAST_CONTEXT, loaded.context):
        text = f"{spec.model}: there is memory for {affordable} tokens of keys and values on {spec.device}, too few"
        raise lack(f"{text}; use a smaller model or type (--dtype), or raise --engine-opt kv_mib=")
    if spec.max_model_len > affordable:
        raise lack(
            f"--max-model-len {spec.max_model_len} is more than there is memory for: keys and values of {affordable} "
            f"tokens fit on {spec.device}; lower it, or raise --engine-opt kv_mib="
        )
    if affordable < loaded.context:
        text = "%s: memory bears %d tokens of keys and values; the context is bounded to that (the model's is %d)"
        log.warning(text, spec.model, affordable, loaded.context)
    return min(affordable, spec.slots * loaded.context)


def _check(spec: EngineSpec) -> None:
    unknown = set(spec.options) - OPTIONS
    if unknown:
        known = ", ".join(sorted(OPTIONS))
        raise CannotLoadError(f"--engine-opt {', '.join(sorted(unknown))}: the generate engine knows {known}")
    path = spec.options.get("path", "auto")
    if path not in PATHS:
        raise CannotLoadError(f"--engine-opt path={path}: there are {', '.join(PATHS)}")
    for name in ("reuse", "deterministic", "graphs", "kernels", "memory_check"):
        if spec.options.get(name, "1") not in {"0", "1"}:
            raise CannotLoadError(f"--engine-opt {name}={spec.options[name]}: it is 1 (on) or 0 (off)")


def _is_on(spec: EngineSpec, name: str, *, default: bool) -> bool:
    return spec.options.get(name, str(int(default))) == "1"


def _choose(name: str, wanted: str, model: Any) -> tuple[str, str]:  # noqa: ANN401 - transformers' models are untyped
    """Take the fused decoder where it can run the model, or the path that was asked for; say why not the fused one."""
    kind = model.config.model_type
    refused = hf_decoder.why_not(model)
    if refused is not None:
        raise CannotLoadError(
            f"{name} cannot be run here: {refused} (model type {kind}). zmqrt runs decoders whose layers all attend to "
            "everything before a token, by our own code or by transformers' modules with our attention inside"
        )
    not_fused = llama.why_not(model.config)
    if wanted == "fused" and not_fused is not None:
        raise CannotLoadError(f"--engine-opt path=fused: {not_fused}; leave it out, and {name} runs on 'modules'")
    if wanted != "auto":
        return wanted, "asked for"
    return ("fused", "") if not_fused is None else ("modules", not_fused)
