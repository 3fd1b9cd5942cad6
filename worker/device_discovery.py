"""Finds the devices of this machine: CUDA devices as the driver lists them, the CPU, or two mock ones.

Nothing of CUDA is touched in the agent: the driver's management library (NVML) lists devices without making a context.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast

from ..protocol import messages as m
from ..protocol.errors import ConfigurationError
from .config import WorkerSettings
from .cores import usable_cores

DeviceKind = Literal["cpu", "cuda", "mock"]
Choice = Literal["auto", "cpu", "cuda", "mock"]
MOCK_DEVICES: Final = 2
_CUDA_THREADS: Final = 2
"""An engine on a GPU computes next to nothing beside it; idle threads of it would cost others their cores."""
_HIDDEN: Final = ("", "-1", "NoDevFiles", "void", "none")
"""Values of CUDA_VISIBLE_DEVICES that hide everything."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device. `handle` is what makes it, and no other, visible to a CUDA process."""

    id: str
    kind: DeviceKind
    name: str = ""
    memory_bytes: int = 0
    handle: str = ""
    threads: int = 1
    """What its engine computes with on the CPU, unless an option says otherwise."""

    @property
    def name_inside(self) -> str:
        """What the device is called in its own process, which sees no other."""
        return "cuda:0" if self.kind == "cuda" else self.id

    def environment(self, *, threads: str = "") -> dict[str, str]:
        """Return the variables of its process."""
        quiet = {"TOKENIZERS_PARALLELISM": "false"}
        # Threads of several processes that spin while they wait take the cores from those that compute.
        calm = {"OMP_NUM_THREADS": threads or str(self.threads), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        return {**quiet, **calm, "CUDA_VISIBLE_DEVICES": self.handle}

    def info(self) -> m.DeviceInfo:
        """Describe it for brokers."""
        return m.DeviceInfo(self.id, self.kind, self.name, self.memory_bytes)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device as the driver lists it, in the order of the PCI bus."""

    uuid: str
    name: str
    memory_bytes: int


def find_devices(settings: WorkerSettings, environ: Mapping[str, str] | None = None) -> list[DeviceSpec]:
    """Return the devices that a worker is to use; `environ` is where CUDA_VISIBLE_DEVICES is looked up.

    Raises:
        ConfigurationError: something that was asked for is not here.
    """
    environ = os.environ if environ is None else environ
    choice: Choice = "mock" if settings.engine_name == "mock" else cast("Choice", settings.device)
    found = select(_of_kind(choice, environ), settings.devices)
    return [replace(device, threads=_threads(device.kind, len(found), environ)) for device in found]


def _threads(kind: DeviceKind, devices: int, environ: Mapping[str, str]) -> int:
    """Share the cores among the devices; OMP_NUM_THREADS of our own environment is what an operator has decided."""
    if kind == "mock":
        return 1
    given = environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given):
        return int(given)
    share = max(1, usable_cores() // devices)
    return min(share, _CUDA_THREADS) if kind == "cuda" else share


def _of_kind(choice: Choice, environ: Mapping[str, str]) -> list[DeviceSpec]:
    if choice == "mock":
        return [DeviceSpec(id=f"mock:{number}", kind="mock", name="mock") for number in range(MOCK_DEVICES)]
    if choice == "cpu":
        return [_cpu()]
    gpus, why_none = list_gpus()
    found = visible(gpus, environ.get("CUDA_VISIBLE_DEVICES"))
    if found:
        return found
    if choice == "auto":
        return [_cpu()]
    if gpus:
        why_none = f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES')!r} hides all {len(gpus)}"
    raise ConfigurationError(f"no CUDA device was found ({why_none}); use --device cpu, or auto")


def select(found: Sequence[DeviceSpec], wanted: Sequence[str]) -> list[DeviceSpec]:
    """Pick devices by number (counted as CUDA_VISIBLE_DEVICES leaves them) or id, in the order of the request.

    Raises:
        ConfigurationError: one is not here, or named twice.
    """
    if not wanted:
        return list(found)
    by_name = {device.id: device for device in found}
    by_name |= {str(number): device for number, device in enumerate(found)}
    missing = [name for name in wanted if name not in by_name]
    if missing:
        here = ", ".join(device.id for device in found)
        raise ConfigurationError(f"there is no device {', '.join(missing)} here; found: {here} (--devices, --device)")
    picked = [by_name[name] for name in wanted]
    if len({device.id for device in picked}) < len(picked):
        raise ConfigurationError(f"--devices {','.join(wanted)} names a device twice")
    return picked


def visible(gpus: Sequence[Gpu], setting: str | None) -> list[DeviceSpec]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does: order counts, and the first entry that is wrong ends the list."""
    if setting is None:
        return [_cuda(number, gpu.uuid, gpu) for number, gpu in enumerate(gpus)]
    found: list[DeviceSpec] = []
    for entry in map(str.strip, setting.split(",")):
        if entry in _HIDDEN:
            break
        if entry.startswith("MIG-"):  # a slice of a device: the driver knows it, we take it as it is
            found.append(_cuda(len(found), entry, Gpu(entry, "MIG slice", 0)))
            continue
        matching = [gpu for number, gpu in enumerate(gpus) if _matches(entry, number, gpu)]
        if len(matching) != 1:
            break
        found.append(_cuda(len(found), matching[0].uuid, matching[0]))
    return found


def _matches(entry: str, number: int, gpu: Gpu) -> bool:
    return gpu.uuid.startswith(entry) if entry.startswith("GPU-") else entry == str(number)


def _cuda(number: int, handle: str, gpu: Gpu) -> DeviceSpec:
    # By uuid: CUDA counts devices by speed, NVML by bus, and numbers would be taken for one another.
    return DeviceSpec(id=f"cuda:{number}", kind="cuda", name=gpu.name, memory_bytes=gpu.memory_bytes, handle=handle)


def _cpu() -> DeviceSpec:
    try:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory_bytes = 0
    return DeviceSpec(id="cpu", kind="cpu", name=_cpu_name(), memory_bytes=memory_bytes)


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(1 << 16), re.MULTILINE)
    except OSError:
        return "cpu"
    return found[1].strip() if found else "cpu"


def list_gpus() -> tuple[list[Gpu], str]:
    """Ask the driver; also return why there are none, should there be none."""
    try:
        import pynvml
    except ImportError:
        return [], "nvidia-ml-py is not installed: pip install 'zmqrt[worker]'"
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], f"NVML: {error}"
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_gpu(nvml, handle) for handle in handles], "the driver lists none"
    except nvml.NVMLError as error:
        log.warning("the CUDA devices could not be listed: %s", error)
        return [], f"NVML: {error}"
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:  # noqa: ANN401 - NVML's bindings are not typed
    uuid, name = (one.decode() if isinstance(one, bytes) else str(one) for one in
                  (nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)))  # fmt: skip
    return Gpu(uuid, name, int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
