"""`python -m zmqrt.worker.checkup`: print what `zmqrt doctor` wants to know of this machine, as one line of JSON.

A process of its own, since it imports torch, which the client never does, and asks a driver, which may hang.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ..protocol.checkup import CacheFacts, Checkup, DriverFacts, GpuFacts, TorchFacts, encode
from .device_discovery import Gpu, visible
from .model_cache import cache_dir
from .model_error import ModelError
from .model_sources import PACKAGES, is_ready

_KERNEL_DRIVER: Final = Path("/proc/driver/nvidia/version")
_HIDING: Final = "CUDA_VISIBLE_DEVICES"


def look() -> Checkup:
    """Gather everything."""
    return Checkup(
        torch=torch_facts(),
        transformers=_version("transformers"),
        triton=_version("triton"),
        driver=driver_facts(),
        cuda_visible_devices=os.environ.get(_HIDING),
        cache=_cache_facts(),
        models={name: is_ready(name) for name in PACKAGES},
    )


def _cache_facts() -> CacheFacts:
    try:
        return cache_facts(cache_dir())
    except ModelError:
        return CacheFacts(
            path="~/.cache/zmqrt (this user has no home)", is_there=False, is_writable=False, size_bytes=0, free_bytes=0
        )


def torch_facts() -> TorchFacts | None:
    """Import torch, if it is there, and ask what it can use."""
    if importlib.util.find_spec("torch") is None:
        return None
    version = _version("torch") or "of unknown version"
    try:
        import torch

        asked: Any = torch
        return TorchFacts(
            version=str(asked.__version__),
            built_for=asked.version.cuda,
            has_cuda=bool(asked.cuda.is_available()),
            devices=int(asked.cuda.device_count()),
        )
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way there is
        return TorchFacts(version=version, error=f"{type(error).__name__}: {error}")


def driver_facts() -> DriverFacts:
    """Ask the driver through NVML."""
    is_loaded = _KERNEL_DRIVER.exists()
    try:
        import pynvml
    except ImportError:
        return DriverFacts(is_loaded=is_loaded, has_bindings=False, error="nvidia-ml-py is not installed")
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return DriverFacts(is_loaded=is_loaded, error=f"NVML: {error}")
    try:
        return _ask_driver(nvml)
    except nvml.NVMLError as error:
        return DriverFacts(is_loaded=True, error=f"NVML: {error}")
    finally:
        nvml.nvmlShutdown()


def _ask_driver(nvml: Any) -> DriverFacts:  # noqa: ANN401 - NVML's bindings are not typed
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    gpus = [
        Gpu(
            _text(nvml.nvmlDeviceGetUUID(handle)),
            _text(nvml.nvmlDeviceGetName(handle)),
            int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        )
        for handle in handles
    ]
    return DriverFacts(
        version=_text(nvml.nvmlSystemGetDriverVersion()),
        gpus=[GpuFacts(name=gpu.name, memory_bytes=gpu.memory_bytes) for gpu in gpus],
        visible=len(visible(gpus, os.environ.get(_HIDING))),
        is_loaded=True,
    )


def _text(told: bytes | str) -> str:
    """Old bindings give bytes."""
    return told.decode() if isinstance(told, bytes) else told


def cache_facts(path: Path) -> CacheFacts:
    """Look at the folder of models, or at the nearest folder above it that is there."""
    nearest = next(one for one in (path, *path.absolute().parents) if os.path.exists(one))  # noqa: PTH110 - never raises
    is_folder = os.path.isdir(nearest)  # noqa: PTH112 - never raises
    return CacheFacts(
        path=str(path),
        is_there=os.path.isdir(path),  # noqa: PTH112 - never raises
        is_writable=is_folder and os.access(nearest, os.W_OK | os.X_OK),
        size_bytes=_size_bytes(path),
        free_bytes=shutil.disk_usage(nearest).free,
    )


def _size_bytes(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # one that went while a download was finished
                total += (Path(root) / name).lstat().st_size
    return total


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Print it, and nothing else: what libraries say while they are imported goes to standard error."""
    out, sys.stdout = sys.stdout, sys.stderr
    found = look()
    out.write(encode(found).decode() + "\n")


if __name__ == "__main__":
    main()
