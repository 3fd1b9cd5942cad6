"""What is asked of a device before a model is loaded: real files on this machine, and a card that a stand-in plays."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support import broken_models as broken
from support.engines import describe
from support.gguf_files import write_gguf
from support.process_engines import ENV
from support.tiny import silent, tiny_model
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.worker.cuda_setup import CudaFacts, TorchBuild
from zmqrt.worker.engines.base import CannotLoadError
from zmqrt.worker.engines.generate import preflight
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.oom import OutOfMemoryError
from zmqrt.worker.memory_fit import DeviceMemory, ServingPlan
from zmqrt.worker.model_resolver import Room, resolve_apart
from zmqrt.worker.nvidia_driver import NO_BINDINGS, DriverReport, Gpu

pytestmark = pytest.mark.integration
TWO_TEBIBYTES = 1 << 19


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Write a model of which the disk holds next to nothing."""
    model = tiny_model(tmp_path, "layers=1,hidden=32")
    broken.enlarge(model, TWO_TEBIBYTES)
    return model


def test_a_model_larger_than_the_machine_is_refused_for_good(large: Path) -> None:
    """No second try could help."""
    with pytest.raises(CannotLoadError, match=r"it needs 2048\.0 GiB .* are free on cpu"):
        factory(describe(large), silent)


def test_whoever_knows_better_goes_on(large: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the same words as a warning."""
    preflight.check_memory(describe(large), spare_bytes=0, must_fit=False)

    assert "too little memory to load" in caplog.text


@pytest.mark.parametrize(
    ("free_mib", "total_mib", "error"),
    [(1100, 8192, None), (512, 8192, OutOfMemoryError), (512, 512, CannotLoadError)],
)
def test_a_card_is_asked_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free_mib: int,
    total_mib: int,
    error: type[Exception] | None,
) -> None:
    """Where others hold its memory it is tried again; where it is too small it is not."""

    def mem_get_info(_device: str) -> tuple[int, int]:
        return free_mib << 20, total_mib << 20

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(preflight, "ROOM_S", 0.0)
    spec = describe(tiny_model(tmp_path, "layers=1,hidden=32"), device="cuda:0")
    if error is None:
        preflight.check_memory(spec, spare_bytes=1 << 30, must_fit=True)
        return
    with pytest.raises(error, match=r"1\.0 GiB to compute in\); 512 MiB of .* are free on cuda:0"):
        preflight.check_memory(spec, spare_bytes=1 << 30, must_fit=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", "0"), ("threads", "many"), ("chunk", "-5"), ("chunk", "9e9"), ("kv_mib", "nan"), ("kv_mib", "x")],
)
def test_a_number_that_is_none_is_refused_at_once_with_its_option(tmp_path: Path, name: str, value: str) -> None:
    """Another try would not make it one."""
    with pytest.raises(CannotLoadError, match=f"--engine-opt {name}={value}: it is a"):
        factory(describe(tmp_path, options={name: value}), silent)


def test_memory_that_others_give_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes the place of another starts while that one still drains."""
    free_mib = [512, 512, 4096]

    def mem_get_info(_device: str) -> tuple[int, int]:
        return free_mib.pop(0) << 20, 8 << 30

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(preflight, "_LOOK_EVERY_S", 0.0)

    spec = describe(tiny_model(tmp_path, "layers=1,hidden=32"), device="cuda:0")
    preflight.check_memory(spec, spare_bytes=1 << 30, must_fit=True)

    assert free_mib == []


def test_what_fits_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With what was counted."""
    with caplog.at_level(logging.INFO):
        preflight.check_memory(describe(tiny_model(tmp_path)), spare_bytes=0, must_fit=True)

    assert "weights as float32" in caplog.text


_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from support.engines import describe
from support.process_engines import ENV
from support.tiny import silent
from zmqrt.worker.engines.generate.factory import factory
limit = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize() + (200 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
factory(describe(Path(sys.argv[1])), silent)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_may_have_too_little_refuses_before_it_loads(tmp_path: Path) -> None:
    """A real model of 260 MiB, and 200 MiB that the process may still get."""
    model = tiny_model(tmp_path, "layers=6,hidden=1024")
    command = [sys.executable, "-c", _UNDER_A_LIMIT, str(model)]
    env = {**os.environ, **ENV}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    last = ended.stderr.strip().splitlines()[-1]

    assert re.search(r"OutOfMemoryError: there is too little memory to load .*bounded by ulimit -d; with --dtype", last)


def test_a_gguf_file_that_fits_no_device_is_not_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that looks for models says so, and has written nothing."""
    monkeypatch.setenv("ZMQRT_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "model.gguf")
    room = Room(
        ServingPlan(dtype="float32", is_mapped=True), DeviceMemory(device="cpu", free_bytes=999, total_bytes=999)
    )
    asked = resolve_apart(str(tmp_path / "model.gguf"), silent, allow_hub=False, allow_download=False, room=room)
    with pytest.raises(ConfigurationError, match=r"too little memory to load model: it needs .* are free on cpu"):
        asyncio.run(asked)

    assert not (tmp_path / "cache").exists()


def test_damaged_files_are_left_to_the_loader(tmp_path: Path) -> None:
    """It names what is wrong with them."""
    model = tiny_model(tmp_path, "layers=1,hidden=32")
    broken.truncate(model / broken.WEIGHTS)

    preflight.check_memory(describe(model), spare_bytes=0, must_fit=True)


H100 = Gpu("GPU-0", "NVIDIA H100", 80 << 30, (9, 0))


def play(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
    """Put a machine with a card and a driver of 2023 in the place of this one."""
    driver = DriverReport(gpus=(H100,), version="535.183", cuda=(12, 2))
    usual: dict[str, Any] = {"driver": driver, "python": "3.12", "compiler": "/usr/bin/gcc"}
    found = CudaFacts(**{**usual, **facts})

    def gather(*_: object, **__: object) -> CudaFacts:
        return found

    monkeypatch.setattr(preflight, "gather", gather)


@pytest.mark.parametrize(
    ("torch_build", "error", "words"),
    [
        (TorchBuild(version="2.13.0", built_for="13.0"), CannotLoadError, "knows CUDA 12.2 at most.*whl/cu126"),
        (TorchBuild(version="2.13.0+cpu"), CannotLoadError, "built for the CPU, but there is a GPU .*whl/cu126"),
        (TorchBuild(version="2.13.0", built_for="12.2"), RuntimeError, "cannot use the GPU.*nvidia-smi"),
        (TorchBuild(version="2.13.0", built_for="12.2", has_cuda=True, devices=1), None, ""),
    ],
)
def test_a_torch_that_does_not_fit_the_driver_is_refused_in_the_words_of_the_doctor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torch_build: TorchBuild,
    error: type[Exception] | None,
    words: str,
) -> None:
    """For good where only the command helps; else it is tried again."""
    play(monkeypatch, torch=torch_build)
    spec = describe(tmp_path, device="cuda:0")
    if error is None:
        preflight.check_device(spec)
        return
    with pytest.raises(error, match=words) as caught:
        factory(spec, silent)

    assert isinstance(caught.value, CannotLoadError) == (error is CannotLoadError)


def test_a_card_that_is_gone_is_told_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may come back."""
    play(monkeypatch, driver=DriverReport(why_none="NVML: Driver/library version mismatch"), kernel_driver="535.1")

    with pytest.raises(RuntimeError, match="run: sudo reboot"):
        preflight.check_device(describe(tmp_path, device="cuda:0"))


def test_a_card_that_torch_has_found_is_used_whoever_else_does_not_list_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nvidia-ml-py is not installed, nobody lists any."""
    works = TorchBuild(version="2.11.0", built_for="12.6", has_cuda=True, devices=1)
    play(monkeypatch, driver=DriverReport(why_none=NO_BINDINGS), torch=works)

    preflight.check_device(describe(tmp_path, device="cuda:0"))


def test_kernels_that_cannot_be_built_name_what_builds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is there, Triton's own words stay."""
    torch_build = TorchBuild(version="2.13.0", built_for="12.2", has_cuda=True, devices=1)
    play(monkeypatch, torch=torch_build, compiler="", headers="/usr/include/python3.12")
    lacking = preflight.why_no_kernels("RuntimeError: Failed to find C compiler")
    play(monkeypatch, torch=torch_build)

    assert lacking.endswith("run: sudo apt install gcc python3.12-dev")
    assert preflight.why_no_kernels("draw is off by 7") == "draw is off by 7"
