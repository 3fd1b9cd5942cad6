"""A driver of NVIDIA for other processes: one card, and a version of 2023."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BINDINGS: Final = """
from types import SimpleNamespace
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "535.183.01"
def nvmlSystemGetCudaDriverVersion(): return 12020
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetHandleByUUID(uuid): raise NVMLError("Not Supported")
def nvmlDeviceGetUUID(handle): return "GPU-0"
def nvmlDeviceGetName(handle): return "NVIDIA H100"
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(total=80 << 30)
def nvmlDeviceGetCudaComputeCapability(handle): return 9, 0
def nvmlDeviceGetMigMode(handle): raise NVMLError("Not Supported")
"""


def with_driver(folder: Path) -> dict[str, str]:
    """Write its bindings into a folder; return the environment in which they are found before the real ones."""
    (folder / "pynvml.py").write_text(_BINDINGS)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}
