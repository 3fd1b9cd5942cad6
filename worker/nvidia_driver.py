"""What NVIDIA's driver says of itself and of its devices, through its management library (NVML).

No CUDA context is made, so the agent may ask. Which devices a process of CUDA would see is decided here too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

_HIDDEN: Final = ("", "-1", "NoDevFiles", "void", "none")
"""Values of CUDA_VISIBLE_DEVICES that hide everything."""
NO_BINDINGS: Final = "nvidia-ml-py is not installed: pip install 'zmqrt[worker]'"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device as the driver lists it. `slices` are its MIG instances, None if it is not in MIG mode."""

    uuid: str
    name: str
    memory_bytes: int
    capability: tuple[int, int] | None = None
    slices: tuple[Gpu, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverReport:
    """Devices in the order of the PCI bus, why there are none if so, and the newest CUDA that the driver knows."""

    gpus: tuple[Gpu, ...] = ()
    why_none: str = "the driver lists none"
    version: str = ""
    cuda: tuple[int, int] | None = None


def ask_driver() -> DriverReport:
    """Ask for all of it; a driver that does not answer is part of the answer."""
    try:
        import pynvml
    except ImportError:
        return DriverReport(why_none=NO_BINDINGS)
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return DriverReport(why_none=f"NVML: {error}")
    try:
        gpus = [_listed(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion)
        return DriverReport(
            gpus=tuple(gpu for gpu in gpus if gpu is not None),
            version=_text(_ask(nvml, nvml.nvmlSystemGetDriverVersion) or ""),
            cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
        )
    except nvml.NVMLError as error:
        log.warning("the CUDA devices could not be listed: %s", error)
        return DriverReport(why_none=f"NVML: {error}")
    finally:
        nvml.nvmlShutdown()


def _listed(nvml: Any, index: int) -> Gpu | None:  # noqa: ANN401 - NVML's bindings are not typed
    """Describe a device; one that has fallen off the bus hides no other."""
    try:
        return _gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError as error:
        log.warning("the driver does not tell what its GPU %d is, so it is not used: %s", index, error)
        return None


def _gpu(nvml: Any, handle: Any) -> Gpu:  # noqa: ANN401 - NVML's bindings are not typed
    capability = _ask(nvml, lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    return Gpu(
        _text(nvml.nvmlDeviceGetUUID(handle)),
        _text(nvml.nvmlDeviceGetName(handle)),
        _ask(nvml, lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)) or 0,  # where it is the host's: unknown
        None if capability is None else (int(capability[0]), int(capability[1])),
        _slices(nvml, handle),
    )


def _slices(nvml: Any, handle: Any) -> tuple[Gpu, ...] | None:  # noqa: ANN401 - as above
    mode = _ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    if mode is None or not mode[0]:  # the mode of now, and that after a reset
        return None
    most = _ask(nvml, lambda: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
    part_at: Callable[[int], Any] = partial(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle)
    found = (_ask(nvml, partial(part_at, at)) for at in range(most))
    return tuple(_gpu(nvml, part) for part in found if part is not None)


def _ask(nvml: Any, question: Callable[[], Any]) -> Any:  # noqa: ANN401 - as above
    """Return None for what an old driver, or this kind of device, does not tell."""
    try:
        return question()
    except nvml.NVMLError:
        return None


def _text(found: bytes | str) -> str:
    return found.decode() if isinstance(found, bytes) else str(found)


def visible_gpus(gpus: Sequence[Gpu], setting: str | None) -> list[Gpu]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does: order counts, and the first entry that is wrong ends the list.

    Without it all slices of a device are there, each for a process of its own; CUDA shows one process the first alone.
    """
    if setting is None:
        return [part for gpu in gpus for part in ((gpu,) if gpu.slices is None else gpu.slices)]
    slices = {part.uuid: part for gpu in gpus for part in gpu.slices or ()}
    found: list[Gpu] = []
    for entry in map(str.strip, setting.split(",")):
        if entry in _HIDDEN:
            break
        if entry.startswith("MIG-"):  # one that is not listed the driver may know all the same: it is taken as it is
            found.append(slices.get(entry, Gpu(entry, "MIG slice", 0)))
            continue
        matching = [gpu for number, gpu in enumerate(gpus) if _matches(entry, number, gpu)]
        if len(matching) != 1 or matching[0].slices == ():
            break
        found.append(matching[0].slices[0] if matching[0].slices else matching[0])
    return found


def _matches(entry: str, number: int, gpu: Gpu) -> bool:
    return gpu.uuid.startswith(entry) if entry.startswith("GPU-") else entry == str(number)
