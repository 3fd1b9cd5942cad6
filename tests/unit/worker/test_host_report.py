"""What the worker reports to `zmqrt doctor`: GPUs, torch and the folder of models, judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from zmqrt.worker.device_discovery import Gpu
from zmqrt.worker.host_report import TorchBuild, check_cache, check_gpus, check_torch

H100 = Gpu("GPU-0", "NVIDIA H100", 80 << 30)
WITH_CUDA = TorchBuild(version="2.13.0", built_for="13.0", has_cuda=True, devices=2)
FOR_CPU = TorchBuild(version="2.13.0+cpu")


def test_gpus_are_counted_and_named() -> None:
    """With their memory; and those that are hidden."""
    assert check_gpus([H100, H100], 2, "", has_driver=True) == ("GPUs", "ok", "2 x NVIDIA H100 (80.0 GiB)", "")
    assert check_gpus([H100, H100], 1, "", has_driver=True)[2].endswith("1 of them hidden by CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("gpus", "has_driver", "verdict", "words"),
    [
        ([], False, "note", "no GPU: models run on the CPU (NVML: library not found)"),
        ([], True, "bad", "NVIDIA's driver is here, but it lists no GPU"),  # as after its update, until a restart
        ([H100], True, "note", "hidden by CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_machine_whose_models_run_on_the_cpu_is_told(
    gpus: list[Gpu],
    has_driver: bool,  # noqa: FBT001 - parametrized
    verdict: str,
    words: str,
) -> None:
    """That is bad only where a GPU is meant to be."""
    name, found_verdict, found, remedy = check_gpus(gpus, 0, "NVML: library not found", has_driver=has_driver)

    assert (name, found_verdict) == ("GPUs", verdict)
    assert words in found
    assert remedy


@pytest.mark.parametrize(
    ("torch", "words", "remedy"),
    [
        (FOR_CPU, "built for the CPU, but there is a GPU", "install a build with CUDA"),
        (TorchBuild(version="2.13.0", built_for="13.0"), "but it cannot use the GPU", "one that knows CUDA 13.0"),
        (TorchBuild(version="2.13.0", built_for="13.0", has_cuda=True, devices=1), "sees 1 of 2 GPUs", "nvidia-smi"),
        (TorchBuild(version="2.13.0", error="OSError: libx.so"), "cannot be imported: OSError", "--force-reinstall"),
    ],
)
def test_a_torch_that_cannot_use_the_gpus_is_bad(torch: TorchBuild, words: str, remedy: str) -> None:
    """The model would run on the CPU, without a word."""
    name, verdict, found, to_do = check_torch(torch, 2)

    assert (name, verdict) == ("torch", "bad")
    assert words in found
    assert remedy in to_do


def test_a_torch_that_fits_is_well() -> None:
    """With GPUs, and without; a client needs none."""
    assert check_torch(WITH_CUDA, 2)[1:3] == ("ok", "2.13.0, built for CUDA 13.0, sees 2 of 2 GPUs")
    assert check_torch(FOR_CPU, 0)[1:3] == ("ok", "2.13.0+cpu, built for the CPU")
    assert check_torch(None, 0)[1] == "note"


def free(gibibytes: int) -> Callable[[Path], SimpleNamespace]:
    """Play a disk with so much room."""

    def usage(_place: Path) -> SimpleNamespace:
        return SimpleNamespace(free=gibibytes << 30)

    return usage


def test_a_cache_is_judged_by_where_it_is_or_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its way makes it impossible; little room is a note."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(shutil, "disk_usage", free(100))
    verdicts: list[str] = []
    for place in (tmp_path, tmp_path / "a" / "b", tmp_path / "file" / "b"):
        monkeypatch.setenv("ZMQRT_CACHE", str(place))
        verdicts.append(check_cache()[1])
    monkeypatch.setenv("ZMQRT_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", free(1))
    full = check_cache()

    assert verdicts == ["ok", "ok", "bad"]
    assert full[1] == "note"
    assert "1.0 GiB free" in full[2]
    assert "ZMQRT_CACHE" in full[3]
