"""From a spec to a `generate` engine: made one way, and with less, step by step, if it does not say what it should."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass
from typing import Final

from ..base import CannotLoadError, EngineSpec, Progress, StartAgainError
from . import preflight, self_test, sizing, ways
from .engine import GenerateEngine
from .engine_maker import ATTENTIONS, EngineMaker
from .gpu_memory import GpuMemory
from .watchdog import Watchdog
from .ways import Way

log = logging.getLogger(__name__)
OPTIONS: Final = frozenset(
    {"threads", "kv_mib", "chunk", "reuse", "path", "deterministic", "graphs", "kernels", "attention", "memory_check"}
)
_OWN_OPTIONS: Final = frozenset({"left_out", "left_out_why"})
"""Those that a process asks for the one after it (`StartAgainError`)."""
PATHS: Final = ("auto", "fused", "modules")


def factory(spec: EngineSpec, progress: Progress) -> GenerateEngine:
    """Load the model of `spec`, choose how to run it, and say which way that is.

    A self-test that fails is a fault of ours, or of a library: the model is loaded anew and run with less, step by step
    (`ways.py`). When nothing is left to leave out it is final, for nothing that the engine says could be believed.
    """
    _check(spec)
    preflight.check_device(spec)
    preflight.check_memory(
        spec, spare_bytes=sizing.MARGIN_MIB << 20, must_fit=sizing.is_on(spec, "memory_check", default=True)
    )
    wanted, options = spec.options.get("path", "auto"), spec.options
    way = ways.first(
        wanted,
        options.get("left_out", ""),
        has_kernels=sizing.is_on(spec, "kernels", default=True),
        has_graphs=sizing.is_on(spec, "graphs", default=True),
    )
    left_out = [options["left_out_why"]] if "left_out_why" in options else []
    with Watchdog() as watchdog:
        if spec.device.startswith("cuda"):
            progress = watchdog.watching(progress)
        while isinstance(made := _attempt(spec, progress, way), _Failure):
            following = made.following or ways.after(made.used, may_leave_path=wanted == "auto")
            if following is None:
                raise CannotLoadError(f"{spec.model} cannot be run here: {made.words}")
            way, what = following
            left_out.append(f"{what} left out: {made.words}")
            log.warning("%s: %s; it is loaded anew without %s. Please report this", spec.model, made.words, what)
            if made.is_device_lost:
                why = "; ".join(left_out)
                raise StartAgainError(why, {"left_out": ways.left_out(way), "left_out_why": why})
            _release(spec)
    made.fallback = "; ".join([*left_out, *filter(None, [made.fallback])])
    gc.freeze()  # what torch and transformers made lives for ever: no pause and no exit walks it again
    return made


@dataclass(frozen=True, slots=True)
class _Failure:
    """A way that did not do, and why. Nothing in it holds on to a model."""

    words: str
    used: Way
    following: tuple[Way, str] | None
    is_device_lost: bool


def _attempt(spec: EngineSpec, progress: Progress, way: Way) -> GenerateEngine | _Failure:
    """Make an engine one way. When this returns a failure nothing of that engine is left but what cycles hold."""
    maker = EngineMaker(spec, progress, way)
    try:
        return maker.make()
    except self_test.SelfTestError as error:
        words = str(error)
    return _Failure(words, maker.used, maker.following, maker.is_device_lost())


def _release(spec: EngineSpec) -> None:
    """Give memory back: called where nothing refers to the engine that failed, for there is no room for two."""
    if spec.device.startswith("cuda"):
        GpuMemory(spec.device).release()
    else:
        gc.collect()


def _check(spec: EngineSpec) -> None:
    unknown = set(spec.options) - OPTIONS - _OWN_OPTIONS
    if unknown:
        known = ", ".join(sorted(OPTIONS))
        raise CannotLoadError(f"--engine-opt {', '.join(sorted(unknown))}: the generate engine knows {known}")
    path = spec.options.get("path", "auto")
    if path not in PATHS:
        raise CannotLoadError(f"--engine-opt path={path}: there are {', '.join(PATHS)}")
    attention = spec.options.get("attention", ATTENTIONS[0])
    if attention not in ATTENTIONS:
        raise CannotLoadError(f"--engine-opt attention={attention}: there are {', '.join(ATTENTIONS)}")
    for name in ("threads", "chunk"):
        spec.count(name, 1, least=1)
    spec.number("kv_mib", 1)
    for name in ("reuse", "deterministic", "graphs", "kernels", "memory_check"):
        if spec.options.get(name, "1") not in {"0", "1"}:
            raise CannotLoadError(f"--engine-opt {name}={spec.options[name]}: it is 1 (on) or 0 (off)")
