"""Asks the driver of NVIDIA devices once a second how they are, on a thread of its own: a driver that hangs must not
hold up heartbeats. Written after NVML's documentation and tried with a stand-in; no GPU has seen it yet.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from .device_discovery import DeviceSpec
from .device_pool import GpuStats

_EVERY_S: Final = 1.0
log = logging.getLogger(__name__)
Tell = Callable[[Mapping[str, GpuStats]], object]


class GpuMonitor:
    """Calls `tell` from its thread with the stats by device id; without CUDA devices there is no thread."""

    def __init__(self, devices: Sequence[DeviceSpec], tell: Tell, *, every_s: float = _EVERY_S) -> None:
        self._devices = [device for device in devices if device.kind == "cuda"]
        self._tell = tell
        self._every_s = every_s
        self._is_over = threading.Event()
        if self._devices:
            # A daemon: at the end nobody waits for a driver that does not answer.
            threading.Thread(target=self._run, name="gpu-monitor", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._is_over.set()

    def _run(self) -> None:
        try:
            import pynvml
        except ImportError:
            return
        nvml: Any = pynvml
        try:
            nvml.nvmlInit()
            handles = {
                device.id: [nvml.nvmlDeviceGetHandleByUUID(handle) for handle in device.handle.split(",")]
                for device in self._devices
            }
        except nvml.NVMLError as error:
            log.warning("the driver says nothing about its devices: %s", error)
            return
        while not self._is_over.is_set():
            stats = {name: joined([read(nvml, handle) for handle in each]) for name, each in handles.items()}
            if not self._is_over.is_set():
                self._tell(stats)
            self._is_over.wait(self._every_s)


def joined(each: Sequence[GpuStats]) -> GpuStats:
    """Say of several devices that one engine has what is told of one: all their memory, and the worst of the rest."""
    memory = [stats.memory_used_bytes for stats in each if stats.memory_used_bytes is not None]
    busy = [stats.busy_percent for stats in each if stats.busy_percent is not None]
    celsius = [stats.celsius for stats in each if stats.celsius is not None]
    return GpuStats(
        memory_used_bytes=sum(memory) if memory else None,
        busy_percent=max(busy, default=None),
        celsius=max(celsius, default=None),
    )


def read(nvml: Any, handle: Any) -> GpuStats:  # noqa: ANN401 - NVML's bindings are not typed
    """Read what there is of one device; a slice of a device, or an old driver, does not tell everything."""

    def ask(question: Callable[[], int]) -> int | None:
        try:
            return int(question())
        except nvml.NVMLError:
            return None

    return GpuStats(
        memory_used_bytes=ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
        busy_percent=ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        celsius=ask(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    )
