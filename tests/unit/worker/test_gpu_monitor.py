"""What a driver tells reaches the heartbeat, and a driver that does not answer stops nothing. A stand-in plays NVML."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from support.stack import eventually
from zmqrt.protocol import messages as m
from zmqrt.worker.device_discovery import DeviceSpec
from zmqrt.worker.device_pool import NO_GPU_STATS, DevicePool, GpuStats
from zmqrt.worker.gpu_monitor import GpuMonitor, joined, read

GPUS = [DeviceSpec(id=f"cuda:{n}", kind="cuda", handle=f"GPU-{n}", memory_bytes=80 << 30) for n in range(2)]


class NVMLError(Exception):
    """What its functions raise."""


def memory(_handle: str) -> Any:
    """Tell the memory."""
    return SimpleNamespace(used=3 << 30)


def utilisation(handle: str) -> Any:
    """Tell how busy it was: the second is."""
    return SimpleNamespace(gpu=90 if handle == "GPU-1" else 10)


def temperature(_handle: str, _sensor: int) -> int:
    """Tell the temperature."""
    return 55


def same(uuid: str) -> str:
    """Let the name be the handle."""
    return uuid


def driver(**changes: Any) -> Any:
    """Make a driver of two devices."""
    usual: dict[str, Any] = {
        "NVMLError": NVMLError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": same,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetUtilizationRates": utilisation,
        "nvmlDeviceGetTemperature": temperature,
    }
    return SimpleNamespace(**{**usual, **changes})


def refuse(*_: object) -> Any:
    """Fail as NVML does where something is not supported."""
    raise NVMLError("not supported")


def test_gpu_stats_come_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, until it is closed."""
    monkeypatch.setitem(sys.modules, "pynvml", driver())
    told: list[Mapping[str, GpuStats]] = []
    watch = GpuMonitor([*GPUS, DeviceSpec(id="cpu", kind="cpu")], told.append, every_s=0.01)
    eventually(lambda: len(told) > 2, what="facts")
    watch.close()

    assert told[0] == {"cuda:0": GpuStats(3 << 30, 10, 55), "cuda:1": GpuStats(3 << 30, 90, 55)}


def test_what_a_device_does_not_tell_is_left_out() -> None:
    """A slice of a device has memory, and no share of the time."""
    nvml = driver(nvmlDeviceGetUtilizationRates=refuse, nvmlDeviceGetTemperature=refuse)

    assert read(nvml, "MIG-1") == GpuStats(3 << 30, None, None)


def test_a_driver_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread stands still, and closing does not wait for it."""
    asked, never = threading.Event(), threading.Event()

    def hang(handle: str) -> Any:
        asked.set()
        never.wait()
        return memory(handle)

    monkeypatch.setitem(sys.modules, "pynvml", driver(nvmlDeviceGetMemoryInfo=hang))
    told: list[Mapping[str, GpuStats]] = []
    watch = GpuMonitor(GPUS, told.append)
    assert asked.wait(20)
    watch.close()
    never.set()

    assert told == []


@pytest.mark.parametrize("changes", [{"nvmlInit": refuse}, {"nvmlDeviceGetHandleByUUID": refuse}])
def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """One line in the log, and the thread is over."""
    monkeypatch.setitem(sys.modules, "pynvml", driver(**changes))
    GpuMonitor(GPUS, lambda _stats: pytest.fail("told"))

    eventually(lambda: all(one.name != "gpu-watch" for one in threading.enumerate()), what="the end of the thread")


def test_there_is_no_thread_without_a_gpu() -> None:
    """Most test machines have none."""
    GpuMonitor([DeviceSpec(id="cpu", kind="cpu")], lambda _stats: None)

    assert all(one.name != "gpu-watch" for one in threading.enumerate())


def test_gpu_stats_stand_in_the_heartbeat() -> None:
    """And nothing stands there before they are known."""
    infos = [m.DeviceInfo(one.id, one.kind) for one in GPUS]
    fleet = DevicePool(infos, served="m", batch_max_size=8, context=0)
    device = fleet.devices["cuda:1"]
    assert device.report(1.0).celsius is None

    fleet.learn({"cuda:1": GpuStats(3 << 30, 90, 55)}, 1.0)

    load = device.report(2.0)
    assert (load.memory_used_bytes, load.busy_percent, load.celsius) == (3 << 30, 90, 55)
    assert device.report(7.0).celsius is None, "a driver that hangs tells nothing of now"


def test_devices_of_one_engine_are_told_of_as_one() -> None:
    """Their memory together, and the busiest and hottest of them; what a driver does not tell stays unknown."""
    each = [GpuStats(1 << 30, 10, 50), GpuStats(2 << 30, 90, None)]

    assert joined(each) == GpuStats(3 << 30, 90, 50)
    assert joined([NO_GPU_STATS, NO_GPU_STATS]) == NO_GPU_STATS
