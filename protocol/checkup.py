"""What the worker part of an installation tells about itself and its machine: one line of JSON. Pure records.

The worker's checkup, a process of its own, fills them in; `zmqrt doctor` judges them. Neither imports the other.
"""

from __future__ import annotations

import msgspec


class TorchFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What torch says. `built_for` is the CUDA version of its build, None of one for the CPU."""

    version: str
    built_for: str | None = None
    has_cuda: bool = False
    devices: int = 0
    error: str = ""


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU."""

    name: str
    memory_bytes: int


class DriverFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the NVIDIA driver says through NVML, or why it says nothing.

    Attributes:
        visible: How many GPUs CUDA_VISIBLE_DEVICES leaves.
        is_loaded: The kernel has the driver, whether or not it could be asked.
        has_bindings: nvidia-ml-py is installed.
    """

    version: str = ""
    gpus: list[GpuFacts] = []
    visible: int = 0
    is_loaded: bool = False
    has_bindings: bool = True
    error: str = ""


class CacheFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The folder of models; where it is not there yet, the rest is about the folder that it will be made in."""

    path: str
    is_there: bool
    is_writable: bool
    size_bytes: int
    free_bytes: int


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; what is not installed is None. `models` says of each known model whether it is here."""

    torch: TorchFacts | None
    transformers: str | None
    triton: str | None
    driver: DriverFacts
    cuda_visible_devices: str | None
    cache: CacheFacts
    models: dict[str, bool]


_decoder = msgspec.json.Decoder(Checkup)


def encode(checkup: Checkup) -> bytes:
    """Write it as one line."""
    return msgspec.json.encode(checkup)


def decode(line: str) -> Checkup:
    """Read it. Raises msgspec.DecodeError."""
    return _decoder.decode(line)
