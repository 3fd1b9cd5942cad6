"""`python -m zmqrt.worker.host_report`: check GPUs, torch, compiler and the folder of models, for `zmqrt doctor`.

Prints one line of JSON: a list of [name, verdict, what was found, what to do]. A process of its own, since importing
torch takes seconds and a driver may hang.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final, Literal

import msgspec

from .cuda_facts import gather, torch_build
from .cuda_setup import diagnose
from .model_cache import cache_dir
from .model_files import ModelError
from .nvidia_driver import ask_driver

Reported = tuple[str, Literal["ok", "note", "bad"], str, str]
"""Name, verdict, what was found, and what to do; a note works, but somebody may want to know."""
_FREE_WANTED_BYTES: Final = 2 << 30
"""The smallest known model takes a tenth of it while it is fetched and converted."""


def main() -> None:
    """Print the report, and nothing else: what libraries print while they are imported goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    facts = gather(ask_driver(), os.environ, torch=torch_build())
    report: list[Reported] = [(one.name, one.verdict, one.found, one.remedy) for one in diagnose(facts)]
    out.write(msgspec.json.encode([*report, check_cache()]).decode() + "\n")


def check_cache() -> Reported:
    """Look at the folder of models, or at the nearest folder above it that is there."""
    remedy = "make it writable for the user who runs the worker, or name another folder with ZMQRT_CACHE"
    try:
        folder = cache_dir()
    except ModelError:
        return "model cache", "bad", "this user has no home, so there is no place for models", remedy
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))  # noqa: PTH110 - never raises
    if not (os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK)):  # noqa: PTH112 - same
        return "model cache", "bad", f"{folder} cannot be written", remedy
    free = shutil.disk_usage(nearest).free
    found = f"{folder}: {free / (1 << 30):.1f} GiB free"
    if free < _FREE_WANTED_BYTES:
        return "model cache", "note", found, "make room on that disk, or name a folder on another one with ZMQRT_CACHE"
    return "model cache", "ok", found, ""


if __name__ == "__main__":
    main()
