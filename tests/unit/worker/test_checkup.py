"""What the worker part tells `zmqrt doctor`: a stand-in plays NVML, and folders play the cache."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zmqrt.protocol.checkup import GpuFacts
from zmqrt.worker.checkup import cache_facts, driver_facts


class NVMLError(Exception):
    """What its functions raise."""


def refuse(*_: object) -> Any:
    """Fail as NVML does without a driver."""
    raise NVMLError("Driver Not Loaded")


def name(_handle: str) -> bytes:
    """Tell the name."""
    return b"H100"


def memory(_handle: str) -> Any:
    """Tell the memory."""
    return SimpleNamespace(total=80 << 30)


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide nothing."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def play(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Put a driver of two devices in NVML's place; some of what it tells comes as bytes, as from old bindings."""
    usual: dict[str, Any] = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": str,
        "nvmlDeviceGetUUID": "GPU-{}".format,
        "nvmlDeviceGetName": name,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlSystemGetDriverVersion": lambda: "590.1",
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**usual, **changes}))


def test_gpus_are_listed_with_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its name and memory."""
    play(monkeypatch)
    found = driver_facts()

    assert found.gpus == [GpuFacts(name="H100", memory_bytes=80 << 30)] * 2
    assert (found.version, found.visible, found.is_loaded, found.error) == ("590.1", 2, True, "")


@pytest.mark.parametrize(("setting", "count"), [("", 0), ("1", 1), ("GPU-0,GPU-1", 2), ("7", 0)])
def test_hidden_gpus_are_counted_as_the_worker_counts(
    monkeypatch: pytest.MonkeyPatch, setting: str, count: int
) -> None:
    """Two are there."""
    play(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)

    assert driver_facts().visible == count


def test_why_there_is_no_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In NVML's words."""
    play(monkeypatch, nvmlInit=refuse)
    found = driver_facts()

    assert (found.gpus, found.error) == ([], "NVML: Driver Not Loaded")


def test_a_driver_that_fails_while_it_is_asked_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its machine is not taken for one without a GPU."""
    play(monkeypatch, nvmlDeviceGetCount=refuse)
    found = driver_facts()

    assert found.is_loaded
    assert found.error


def test_missing_bindings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a package of their own."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    assert not driver_facts().has_bindings


def test_the_size_of_a_cache_is_that_of_its_files(tmp_path: Path) -> None:
    """Also of those in folders within."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(bytes(1000))
    (tmp_path / "list").write_bytes(bytes(24))
    found = cache_facts(tmp_path)

    assert (found.is_there, found.is_writable, found.size_bytes) == (True, True, 1024)
    assert found.free_bytes > 0


def test_a_cache_that_is_not_there_is_judged_by_where_it_will_be(tmp_path: Path) -> None:
    """A file in its way makes it impossible."""
    (tmp_path / "file").touch()
    later, never = cache_facts(tmp_path / "a" / "b"), cache_facts(tmp_path / "file" / "b")

    assert (later.is_there, later.is_writable, later.size_bytes) == (False, True, 0)
    assert (never.is_there, never.is_writable) == (False, False)
