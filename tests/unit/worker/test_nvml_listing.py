"""GPUs as NVML lists them: a stand-in plays its bindings."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from zmqrt.worker.device_discovery import Gpu, list_gpus


class NVMLError(Exception):
    """What its functions raise."""


def refuse(*_: object) -> Any:
    """Fail as NVML does without a driver."""
    raise NVMLError("Driver Not Loaded")


def name(_handle: str) -> bytes:
    """Return text as old bindings do."""
    return b"H100"


def memory(_handle: str) -> Any:
    """Return the memory."""
    return SimpleNamespace(total=80 << 30)


def play(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Put a driver of two devices in NVML's place."""
    usual: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": str,
        "nvmlDeviceGetUUID": "GPU-{}".format,
        "nvmlDeviceGetName": name,
        "nvmlDeviceGetMemoryInfo": memory,
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**usual, **changes}))


def test_gpus_are_listed_with_name_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the driver."""
    play(monkeypatch)

    assert list_gpus()[0] == [Gpu("GPU-0", "H100", 80 << 30), Gpu("GPU-1", "H100", 80 << 30)]


@pytest.mark.parametrize("fails", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """At its start, or while it is asked."""
    play(monkeypatch, **{fails: refuse})

    assert list_gpus() == ([], "NVML: Driver Not Loaded")


def test_missing_bindings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a package of their own."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    gpus, why_none = list_gpus()

    assert gpus == []
    assert "nvidia-ml-py is not installed" in why_none
