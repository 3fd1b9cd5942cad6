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
from typing import Final, Literal, cast

from ..protocol import messages as m
from ..protocol.errors import ConfigurationError
from .config import WorkerSettings
from .cores import usable_cores
from .cuda_facts import gather
from .cuda_setup import judge_gpus
from .host_memory import host_memory
from .memory_fit import DeviceMemory
from .nvidia_driver import Gpu, ask_driver, visible_gpus

DeviceKind = Literal["cpu", "cuda", "mock", "server"]
Choice = Literal["auto", "cpu", "cuda", "mock", "server"]
MOCK_DEVICES: Final = 2
_WSL: Final = Path("/dev/dxg")
"""Windows' driver in Linux, where the first allocation of segments that grow may fail."""
_CUDA_THREADS: Final = 2
"""An engine on a GPU computes next to nothing beside it; idle threads of it would cost others their cores."""
_ALLOCATOR_SETTINGS: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The name, and the one that it had before torch 2.9: whoever sets either has reasons."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device, or several that one engine has. `handle` makes it, and no other, visible to a CUDA process."""

    id: str
    kind: DeviceKind
    name: str = ""
    memory_bytes: int = 0
    handle: str = ""
    threads: int = 1
    """What its engine computes with on the CPU, unless an option says otherwise."""
    fallback: str = ""
    """Why it is used in the place of a GPU that this machine has."""

    @property
    def name_inside(self) -> str:
        """What the device is called in its own process, which sees no other."""
        return "cuda:0" if self.kind == "cuda" else self.id

    def environment(self, *, threads: str = "") -> dict[str, str]:
        """Return the variables of its process."""
        if self.kind == "server":
            return {}  # what is started there has the machine as it is
        quiet = {"TOKENIZERS_PARALLELISM": "false"}
        # Threads of several processes that spin while they wait take the cores from those that compute.
        calm = {"OMP_NUM_THREADS": threads or str(self.threads), "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
        return {**quiet, **calm, **self._allocator(), "CUDA_VISIBLE_DEVICES": self.handle}

    def _allocator(self) -> dict[str, str]:
        """Let torch's allocator grow what it has: prompts of all lengths leave holes that fit no other."""
        is_set = any(name in os.environ for name in _ALLOCATOR_SETTINGS)
        if self.kind != "cuda" or is_set or _WSL.exists():
            return {}
        return {_ALLOCATOR_SETTINGS[0]: "expandable_segments:True"}

    def info(self) -> m.DeviceInfo:
        """Describe it for brokers."""
        return m.DeviceInfo(self.id, self.kind, self.name, self.memory_bytes)


def find_devices(settings: WorkerSettings, environ: Mapping[str, str] | None = None) -> list[DeviceSpec]:
    """Return the devices that a worker is to use; `environ` is where CUDA_VISIBLE_DEVICES is looked up.

    Raises:
        ConfigurationError: something that was asked for is not here.
    """
    environ = os.environ if environ is None else environ
    choice = cast("Choice", settings.device)
    if settings.engine_name == "mock" or settings.is_elsewhere:
        choice = "server" if settings.is_elsewhere else "mock"
    found = join(select(_of_kind(choice, environ), settings.devices), settings.devices_per_engine)
    return [replace(device, threads=_threads(device.kind, len(found), environ)) for device in found]


def _threads(kind: DeviceKind, devices: int, environ: Mapping[str, str]) -> int:
    """Share the cores among the devices; OMP_NUM_THREADS of our own environment is what an operator has decided."""
    if kind in ("mock", "server"):
        return 1
    given = environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given):
        return int(given)
    share = max(1, usable_cores() // devices)
    return min(share, _CUDA_THREADS) if kind == "cuda" else share


def _of_kind(choice: Choice, environ: Mapping[str, str]) -> list[DeviceSpec]:
    if choice == "mock":
        return [DeviceSpec(id=f"mock:{number}", kind="mock", name="mock") for number in range(MOCK_DEVICES)]
    if choice == "server":
        return [DeviceSpec(id="server", kind="server", name="another server")]
    if choice == "cpu":
        return [_cpu()]
    driver = ask_driver()
    found = visible(driver.gpus, environ.get("CUDA_VISIBLE_DEVICES"))
    if found:
        return found
    facts = gather(driver, environ)
    why = judge_gpus(facts)
    if choice == "cuda":
        raise ConfigurationError(f"no CUDA device was found: {why.words}; or use --device cpu")
    if facts.has_gpu:
        log.warning("%s", why.words)
    return [replace(_cpu(), fallback=why.words if why.verdict == "bad" else "")]


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


def join(found: Sequence[DeviceSpec], size: int) -> list[DeviceSpec]:
    """Give each engine so many CUDA devices, in their order (0 = all of them); those that are left over stay idle.

    Raises:
        ConfigurationError: there are fewer.
    """
    size = size or len(found)
    if size == 1 or any(device.kind != "cuda" for device in found):
        return list(found)
    if len(found) < size:
        text = f"--engine-opt asks for an engine over {size} devices, and there are {len(found)}"
        raise ConfigurationError(f"{text}: tensor_parallel_size, pipeline_parallel_size, data_parallel_size")
    idle = found[len(found) // size * size :]
    if idle:
        log.warning("idle, since an engine takes %d devices: %s", size, ", ".join(device.id for device in idle))
    return [_joined(found[at : at + size]) for at in range(0, len(found) - size + 1, size)]


def _joined(group: Sequence[DeviceSpec]) -> DeviceSpec:
    return replace(
        group[0],
        id="+".join([group[0].id, *(device.id.removeprefix("cuda:") for device in group[1:])]),
        name=f"{len(group)} x {group[0].name}",
        memory_bytes=sum(device.memory_bytes for device in group),
        handle=",".join(device.handle for device in group),
    )


def visible(gpus: Sequence[Gpu], setting: str | None) -> list[DeviceSpec]:
    """Return the devices that CUDA_VISIBLE_DEVICES leaves."""
    # By uuid: CUDA counts devices by speed, NVML by bus, and numbers would be taken for one another.
    return [
        DeviceSpec(id=f"cuda:{number}", kind="cuda", name=gpu.name, memory_bytes=gpu.memory_bytes, handle=gpu.uuid)
        for number, gpu in enumerate(visible_gpus(gpus, setting))
    ]


def largest_memory(devices: Sequence[DeviceSpec]) -> DeviceMemory | None:
    """Return the memory of the device that holds most, as if it were free; None if one of them does not tell."""
    if any(device.kind == "cpu" for device in devices):
        host = host_memory()
        return replace(host, free_bytes=host.total_bytes) if host else None
    most = max(devices, key=lambda device: device.memory_bytes)
    if most.kind != "cuda" or not all(device.memory_bytes for device in devices):
        return None
    return DeviceMemory(device=most.id, free_bytes=most.memory_bytes, total_bytes=most.memory_bytes)


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
