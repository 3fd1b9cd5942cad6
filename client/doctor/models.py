"""Judge what loads models and where they lie: transformers, the cache, the models that have names. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from ...protocol.checkup import CacheFacts, Checkup
from .check import Check, parse_version, show_bytes, show_version
from .gpu import GROUP

TRANSFORMERS: Final = ((5, 17), (5, 18))
"""From the first to below the second; a test compares them with pyproject.toml."""
FREE_WANTED_BYTES: Final = 2 << 30
"""The smallest known model takes a tenth of it while it is fetched and converted."""


def judge(here: Checkup) -> list[Check]:
    """Judge all of it."""
    return [*_transformers(here), _cache(here.cache), *_models(here.models)]


def _transformers(here: Checkup) -> Iterator[Check]:
    version = here.transformers
    lowest, below = TRANSFORMERS
    remedy = f"run: pip install 'transformers>={show_version(lowest)},<{show_version(below)}'"
    if version is None:
        if here.torch is not None:  # without either, torch has said it already
            yield Check(GROUP, "transformers", "bad", "not installed, but torch is: no model can be loaded", remedy)
    elif lowest <= parse_version(version) < below:
        yield Check(GROUP, "transformers", "ok", version)
    else:
        found = f"{version} is not a version that zmqrt was made for: it builds on what changes between them"
        yield Check(GROUP, "transformers", "bad", found, remedy)


def _cache(cache: CacheFacts) -> Check:
    if not cache.is_writable:
        found = f"{cache.path} cannot be written" if cache.is_there else f"{cache.path} cannot be made"
        remedy = "make it writable for the user who runs the worker, or name another folder with ZMQRT_CACHE"
        return Check(GROUP, "model cache", "bad", found, remedy)
    size = show_bytes(cache.size_bytes) if cache.is_there else "made when first used"
    found = f"{cache.path}: {size}, {show_bytes(cache.free_bytes)} free"
    if cache.free_bytes < FREE_WANTED_BYTES:
        remedy = "make room on that disk, or name a folder on another one with ZMQRT_CACHE"
        return Check(GROUP, "model cache", "note", found, remedy)
    return Check(GROUP, "model cache", "ok", found)


def _models(models: Mapping[str, bool]) -> Iterator[Check]:
    here = [name for name, is_here in models.items() if is_here]
    if here:
        yield Check(GROUP, "models", "ok", f"here: {', '.join(here)}")
    elif models:
        found = f"none that has a name is here ({', '.join(models)})"
        remedy = f"run: zmqrt models fetch {next(iter(models))} (a folder or .gguf file of your own needs no fetching)"
        yield Check(GROUP, "models", "note", found, remedy)
