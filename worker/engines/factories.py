"""From the name of an engine to engines that are loaded: find the factory, call it, pass its progress on."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, cast

from .base import CannotLoadError, Engine, EngineSpec, Factory, Phase, dtype_on
from .oom import OutOfMemoryError, explain

GROUP: Final = "zmqrt.engines"
"""Entry points of other distributions that bring an engine with a name."""
_OWN: Final = {
    "mock": "zmqrt.worker.engines.mock:factory",
    "openai": "zmqrt.worker.engines.openai_engine:factory",
    "generate": "zmqrt.worker.engines.generate.factory:factory",
    "vllm": "zmqrt.worker.engines.vllm_factory:factory",
    "encoder": "zmqrt.worker.engines.encoder.encoder_factory:factory",
}
_PROGRESS_EVERY_S: Final = 0.1


def find_factory(name: str) -> Factory:
    """Return the factory of an installed engine, or of `package.module:factory`. Raises LookupError."""
    module, colon, attribute = _OWN.get(name, name).partition(":")
    if colon:
        _allow_working_directory()
        found: object = getattr(importlib.import_module(module), attribute, None)
        if not callable(found):
            raise LookupError(f"module {module!r} has no function {attribute!r}")
        return cast("Factory", found)
    from importlib.metadata import entry_points  # not for our own: it takes longer than all the rest of this process

    for entry in entry_points(group=GROUP, name=name):
        return cast("Factory", entry.load())
    known = ", ".join(sorted({*_OWN, *(entry.name for entry in entry_points(group=GROUP))}))
    raise LookupError(f"no engine is named {name!r}; there are {known}, and your own is MODULE:FACTORY")


def _allow_working_directory() -> None:
    """Let an engine of the user's own lie in the working directory: last, so that it hides nothing installed."""
    with contextlib.suppress(OSError):  # the directory is gone
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.append(here)


def load_engines(spec: EngineSpec, progress: Callable[[Phase, float], None]) -> dict[str, Engine]:
    """Load the engines of a spec, by the suffix of their service.

    Raises:
        OutOfMemoryError: there was too little memory; whatever else a factory raises passes through.
    """
    progress("starting", 0.0)
    try:
        factory = find_factory(spec.engine)
    except (ImportError, LookupError, SyntaxError, ValueError) as error:
        raise CannotLoadError(f"--engine {spec.engine}: {error}") from error
    try:
        made = factory(spec, progress)
    except Exception as error:
        words = explain(error, spec.model)
        if words is None:
            raise
        raise OutOfMemoryError(words) from error
    engines = dict(made) if isinstance(made, Mapping) else {"": made}
    if not engines:
        raise ValueError(f"the factory {spec.engine!r} returned no engine")
    return engines


def revision_of(spec: EngineSpec) -> str:
    """Name weights, type, bits and engine: a started stream goes on only where they are equal."""
    if not spec.revision:
        return spec.engine
    bits = () if spec.quantize == "none" else (spec.quantize,)
    return "-".join((spec.revision, dtype_on(spec.device, spec.dtype, spec.quantize), *bits, spec.engine))


class LoadProgress:
    """Passes a factory's progress on: a new phase at once, percentages at most ten times a second.

    Loaders read weights on several threads, so it may be called from any.
    """

    def __init__(self, tell: Callable[[Phase, float], None], clock: Callable[[], float]) -> None:
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._phase: Phase | None = None
        self._reported_at = 0.0

    def __call__(self, phase: Phase, percent: float) -> None:
        """Hear of progress."""
        with self._lock:
            now = self._clock()
            if phase == self._phase and percent < 100.0 and now - self._reported_at < _PROGRESS_EVERY_S:
                return
            self._phase, self._reported_at = phase, now
            self._tell(phase, min(100.0, max(0.0, percent)))
