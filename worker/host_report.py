"""`python -m zmqrt.worker.host_report`: check GPUs, torch and the folder of models, for `zmqrt doctor`.

Prints one line of JSON: a list of [name, verdict, what was found, what to do]. A process of its own, since importing
torch takes seconds and a driver may hang.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from .device_discovery import Gpu, list_gpus, visible
from .model_cache import cache_dir
from .model_files import ModelError

Reported = tuple[str, Literal["ok", "note", "bad"], str, str]
"""Name, verdict, what was found, and what to do; a note works, but somebody may want to know."""
_KERNEL_DRIVER: Final = Path("/proc/driver/nvidia/version")
_ON_CPU: Final = "models run on the CPU"
_FREE_WANTED_BYTES: Final = 2 << 30
"""The smallest known model takes a tenth of it while it is fetched and converted."""


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """What torch says of itself. `built_for` is the CUDA version of its build, None of one for the CPU."""

    version: str
    built_for: str | None = None
    has_cuda: bool = False
    devices: int = 0
    error: str = ""


def main() -> None:
    """Print the report, and nothing else: what libraries print while they are imported goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    gpus, why_none = list_gpus()
    usable = len(visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES")))
    torch = torch_build()
    has_driver = _KERNEL_DRIVER.exists() or (torch is not None and torch.has_cuda)
    report = [check_gpus(gpus, usable, why_none, has_driver=has_driver), check_torch(torch, usable), check_cache()]
    out.write(msgspec.json.encode(report).decode() + "\n")


def check_gpus(gpus: Sequence[Gpu], usable: int, why_none: str, *, has_driver: bool) -> Reported:
    """Find a GPU that no worker would use; `usable` is how many CUDA_VISIBLE_DEVICES leaves."""
    names = Counter(f"{gpu.name} ({gpu.memory_bytes / (1 << 30):.1f} GiB)" for gpu in gpus)
    found = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())
    if gpus and usable:
        unseen = f", {len(gpus) - usable} of them hidden by CUDA_VISIBLE_DEVICES" if usable < len(gpus) else ""
        return "GPUs", "ok", found + unseen, ""
    if gpus:
        remedy = "unset CUDA_VISIBLE_DEVICES if they are meant to be used"
        return "GPUs", "note", f"{found}, hidden by CUDA_VISIBLE_DEVICES: {_ON_CPU}", remedy
    if has_driver:
        remedy = "run nvidia-smi; after an update of the driver, restart the machine (or give the container its GPUs)"
        return "GPUs", "bad", f"NVIDIA's driver is here, but it lists no GPU: {_ON_CPU} ({why_none})", remedy
    return "GPUs", "note", f"no GPU: {_ON_CPU} ({why_none})", "if there is one, install NVIDIA's driver"


def torch_build() -> TorchBuild | None:
    """Import torch, if it is there, and ask what it can use."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        import torch

        asked: Any = torch
        return TorchBuild(
            version=str(asked.__version__),
            built_for=asked.version.cuda,
            has_cuda=bool(asked.cuda.is_available()),
            devices=int(asked.cuda.device_count()),
        )
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way there is
        return TorchBuild(version=metadata.version("torch"), error=f"{type(error).__name__}: {error}")


def check_torch(torch: TorchBuild | None, usable: int) -> Reported:
    """Compare torch with the GPUs and their driver: the trouble is nearly always between two of them."""
    if torch is None:
        remedy = "to serve models here, run: pip install 'zmqrt[worker,models]'; a client needs none of it"
        return "torch", "note", "not installed: no model runs here but the mock", remedy
    if torch.error:
        found = f"{torch.version} cannot be imported: {torch.error}"
        return "torch", "bad", found, "run: pip install --force-reinstall torch"
    found = f"{torch.version}, built for {f'CUDA {torch.built_for}' if torch.built_for else 'the CPU'}"
    if not usable:
        return "torch", "ok", found, ""
    if torch.has_cuda:
        found += f", sees {torch.devices} of {usable} GPUs"
        remedy = "run nvidia-smi: a GPU that torch cannot use is in an error state, in use by others alone, or too old"
        return ("torch", "ok", found, "") if torch.devices >= usable else ("torch", "bad", found, remedy)
    if torch.built_for is None:
        remedy = "install a build with CUDA; pytorch.org names the command for this system"
        return "torch", "bad", f"{found}, but there is a GPU", remedy
    remedy = (
        f"update NVIDIA's driver to one that knows CUDA {torch.built_for} (nvidia-smi names what it knows), or install "
        "a torch that is built for an older CUDA"
    )
    return "torch", "bad", f"{found}, but it cannot use the GPU", remedy


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
