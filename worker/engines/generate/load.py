"""From a spec to a `generate` engine: which way a model is run, and how large its pool is."""

from __future__ import annotations

import gc
import logging
from typing import Any, Final

import msgspec
import torch

from ..base import EngineSpec, Progress, TokenEngine
from ..cb_load import Loaded, load
from ..cb_load import plan as plan_blocks
from ..transformers_cb import TransformersEngine, warm_up
from . import decoder, modules
from .engine import GenerateEngine
from .schedule import Limits
from .torch_runner import Decoder, TorchRunner

log = logging.getLogger(__name__)
OPTIONS: Final = frozenset({"threads", "kv_mib", "chunk", "reuse", "path"})
PATHS: Final = ("auto", "fused", "modules", "transformers")
_CPU_ROWS: Final = 16
_CUDA_ROWS: Final = 64
"""Requests beside each other unless `--slots` says otherwise: a step costs little more for the next row."""
_CPU_CHUNK: Final = 128
"""A step of more prefill than this takes seconds on one core, and everybody waits for it."""
_CUDA_CHUNK: Final = 512
_CPU_KV_MIB: Final = 1024
_CUDA_KV_SHARE: Final = 0.9
"""Of what is free after loading; activations of a step need the rest."""


def factory(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Load the model of `spec`, choose how to run it, and say which way that is."""
    _check(spec)
    loaded = load(spec, progress, attention="sdpa")
    spec = msgspec.structs.replace(spec, slots=spec.slots or (_CUDA_ROWS if loaded.is_cuda else _CPU_ROWS))
    path, why = _choose(spec.model, spec.options.get("path", "auto"), loaded.model, is_cuda=loaded.is_cuda)
    log.info("model %s runs on the path %r%s", spec.model, path, f": {why}" if why else "")
    engine: GenerateEngine | TransformersEngine
    if path == "transformers":
        loaded.model.set_attn_implementation("paged|sdpa")
        pool = plan_blocks(spec, loaded)
        engine = TransformersEngine(loaded.model, pool=pool, context=loaded.context, eos_ids=sorted(loaded.eos_ids))
    else:
        made: Decoder = modules.ModuleDecoder(loaded.model) if path == "modules" else decoder.LlamaDecoder(loaded.model)
        engine = _engine(spec, loaded, made)
    warm_up(engine, progress)
    gc.freeze()  # what torch and transformers made lives for ever: no pause and no exit walks it again
    return engine


def _engine(spec: EngineSpec, loaded: Loaded, made: Decoder) -> GenerateEngine:
    options = spec.options
    kv_tokens = plan_tokens(spec, loaded)
    runner = TorchRunner(made, kv_tokens, dtype=loaded.model.dtype, device=loaded.model.device)
    limits = Limits(
        rows=spec.slots,
        context=min(loaded.context, kv_tokens),
        chunk_tokens=int(options.get("chunk", _CUDA_CHUNK if loaded.is_cuda else _CPU_CHUNK)),
        may_reuse=options.get("reuse", "1") != "0",
    )
    return GenerateEngine(runner, kv_tokens=kv_tokens, limits=limits, eos_ids=sorted(loaded.eos_ids))


def plan_tokens(spec: EngineSpec, loaded: Loaded) -> int:
    """Size the pool: at least one request of full length, at most every slot full, and no more than memory bears."""
    if "kv_mib" in spec.options:
        budget = int(spec.options["kv_mib"]) << 20
    elif loaded.is_cuda:
        free, _ = torch.cuda.mem_get_info(spec.device)
        budget = int(free * _CUDA_KV_SHARE)
    else:
        budget = _CPU_KV_MIB << 20
    affordable = budget // loaded.kv_bytes_per_token
    return max(min(affordable, spec.slots * loaded.context), loaded.context)


def _check(spec: EngineSpec) -> None:
    unknown = set(spec.options) - OPTIONS
    if unknown:
        known = ", ".join(sorted(OPTIONS))
        raise ValueError(f"--engine-opt {', '.join(sorted(unknown))}: the generate engine knows {known}")
    path = spec.options.get("path", "auto")
    if path not in PATHS:
        raise ValueError(f"--engine-opt path={path}: there are {', '.join(PATHS)}")


def _choose(name: str, wanted: str, model: Any, *, is_cuda: bool) -> tuple[str, str]:  # noqa: ANN401 - transformers' models are untyped
    """Take the fastest way that a model can be run, or the one that was asked for; say why not a faster one."""
    never = modules.why_never(model)
    if never is not None:
        raise ValueError(f"{name} cannot be run here: {never} (model type {model.config.model_type})")
    if wanted != "auto":
        return wanted, "asked for"
    if is_cuda:
        return "transformers", "the others have been measured on no GPU yet (--engine-opt path=fused tries)"
    not_fused = decoder.why_not(model.config) or modules.why_not(model)
    if not_fused is None:
        return "fused", ""
    not_modules = modules.why_not(model)
    return ("modules", not_fused) if not_modules is None else ("transformers", not_modules)
