"""Gathers what `cuda_setup.py` judges: the driver, its files, torch, and what Triton calls. Decides nothing.

The agent leaves torch out: importing it takes seconds, and a CUDA context would be made in the wrong process.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .cuda_setup import CudaFacts, TorchBuild
from .nvidia_driver import DriverReport

_NVIDIA: Final = "0x10de"
_DISPLAY: Final = "0x03"
"""The class of PCI devices that graphics cards and GPUs without a display belong to."""
_FILES: Final = ("dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia0")
_CONTAINERS: Final = (".dockerenv", "run/.containerenv")


def gather(
    driver: DriverReport, environ: Mapping[str, str], *, torch: TorchBuild | None = None, root: Path = Path("/")
) -> CudaFacts:
    """Look at the machine; `driver` and `torch` are what those said."""
    kernel_driver = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", _text(root / "proc/driver/nvidia/version"))
    has_files = kernel_driver is not None and not (root / "dev/dxg").exists()  # WSL has one file for all
    files = [root / name for name in _FILES] if has_files else []
    headers = Path(sysconfig.get_paths()["include"])
    return CudaFacts(
        driver=driver,
        setting=environ.get("CUDA_VISIBLE_DEVICES"),
        kernel_driver=kernel_driver[1] if kernel_driver else "",
        pci_gpus=_pci_gpus(root / "sys/bus/pci/devices"),
        missing_files=tuple(str(file) for file in files if not file.exists()),
        closed_files=tuple(str(file) for file in files if file.exists() and not os.access(file, os.R_OK | os.W_OK)),
        is_container="KUBERNETES_SERVICE_HOST" in environ or any((root / name).exists() for name in _CONTAINERS),
        torch=torch,
        compiler=_compiler(environ),
        headers="" if (headers / "Python.h").is_file() else str(headers),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        installer=next((name for name in ("apt", "dnf") if shutil.which(name)), ""),
    )


def _compiler(environ: Mapping[str, str]) -> str:
    """Return what Triton calls: CC, else gcc, else clang."""
    named = environ.get("CC")
    if named is not None:
        return shutil.which(named.split()[0]) or "" if named.split() else ""
    return shutil.which("gcc") or shutil.which("clang") or ""


def _pci_gpus(devices: Path) -> int:
    try:
        found = list(devices.iterdir())
    except OSError:
        return 0
    return sum(
        _text(device / "vendor").startswith(_NVIDIA) and _text(device / "class").startswith(_DISPLAY)
        for device in found
    )


def torch_build() -> TorchBuild | None:
    """Import torch, if it is there, and ask what it can use."""
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        import torch

        asked: Any = torch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a driver that is too old, which is judged here
            return TorchBuild(
                version=str(asked.__version__),
                built_for=asked.version.cuda,
                has_cuda=bool(asked.cuda.is_available()),
                devices=int(asked.cuda.device_count()),
                architectures=tuple(asked.cuda.get_arch_list()),
            )
    except Exception as error:  # noqa: BLE001 - a broken installation fails in any way there is
        from importlib import metadata

        return TorchBuild(version=metadata.version("torch"), error=f"{type(error).__name__}: {error}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
