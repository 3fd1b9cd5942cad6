"""GPUs and their driver as NVML tells of them: a stand-in plays its bindings."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from zmqrt.worker.nvidia_driver import DriverReport, Gpu, ask_driver


class NVMLError(Exception):
    """What its functions raise."""


def refuse(*_: object) -> Any:
    """Fail as NVML does without a driver, or asked what this one does not know."""
    raise NVMLError("Driver Not Loaded")


def name(handle: str) -> bytes:
    """Return text as old bindings do."""
    return b"H100" if "/" not in handle else b"H100 MIG 3g.40gb"


def memory(handle: str) -> Any:
    """Return the memory."""
    return SimpleNamespace(total=(80 if "/" not in handle else 40) << 30)


def capability(_handle: str) -> list[int]:
    """Return that of an H100."""
    return [9, 0]


def play(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Put a driver of two devices in NVML's place."""
    usual: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: b"535.183.01",
        "nvmlSystemGetCudaDriverVersion": lambda: 12020,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": str,
        "nvmlDeviceGetUUID": "GPU-{}".format,
        "nvmlDeviceGetName": name,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": capability,
        "nvmlDeviceGetMigMode": refuse,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**usual, **changes}))


def test_gpus_and_driver_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the driver, with what decides whether a build of torch runs."""
    play(monkeypatch)

    assert ask_driver() == DriverReport(
        gpus=(Gpu("GPU-0", "H100", 80 << 30, (9, 0)), Gpu("GPU-1", "H100", 80 << 30, (9, 0))),
        version="535.183.01",
        cuda=(12, 2),
    )


def test_slices_are_listed_below_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those places that have none are passed over."""

    def part(handle: str, at: int) -> str:
        return refuse() if at == 1 else f"{handle}/{at}"

    def mode(handle: str) -> list[int]:
        return [int(handle == "1"), 1]

    def most(_handle: str) -> int:
        return 3

    play(
        monkeypatch,
        nvmlDeviceGetMigMode=mode,
        nvmlDeviceGetMaxMigDeviceCount=most,
        nvmlDeviceGetMigDeviceHandleByIndex=part,
    )
    whole, sliced = ask_driver().gpus

    assert whole.slices is None
    assert [(one.uuid, one.name, one.memory_bytes) for one in sliced.slices or ()] == [
        ("GPU-1/0", "H100 MIG 3g.40gb", 40 << 30),
        ("GPU-1/2", "H100 MIG 3g.40gb", 40 << 30),
    ]


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """At its start, or while it is asked."""
    play(monkeypatch, **{fails: refuse})

    assert ask_driver() == DriverReport(why_none="NVML: Driver Not Loaded")


@pytest.mark.parametrize(
    "silent", ["nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion", "nvmlDeviceGetCudaComputeCapability"]
)
def test_what_an_old_driver_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    """Its devices are listed all the same."""
    play(monkeypatch, **{silent: refuse})

    assert [gpu.name for gpu in ask_driver().gpus] == ["H100", "H100"]


def test_a_card_that_has_fallen_off_the_bus_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one whose memory is the host's, and so is not told."""

    def handle(index: int) -> str:
        return refuse() if index == 0 else f"GPU-{index}"

    play(monkeypatch, nvmlDeviceGetHandleByIndex=handle, nvmlDeviceGetMemoryInfo=refuse)

    (gpu,) = ask_driver().gpus
    assert (gpu.name, gpu.memory_bytes) == ("H100", 0)


def test_missing_bindings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a package of their own."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert "nvidia-ml-py is not installed" in ask_driver().why_none
