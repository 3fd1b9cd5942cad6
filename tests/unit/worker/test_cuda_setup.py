"""What `zmqrt doctor` and a worker say of GPU, driver, torch and compiler: made-up machines, one row each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zmqrt.worker.cuda_setup import CudaFacts, Diagnosis, TorchBuild, diagnose, judge_gpus, judge_torch
from zmqrt.worker.nvidia_driver import NO_BINDINGS, DriverReport, Gpu

H100 = Gpu("GPU-0", "NVIDIA H100", 80 << 30, (9, 0))
GTX = Gpu("GPU-1", "GTX 1080", 8 << 30, (6, 1))
PIP = "pip install --force-reinstall 'torch>=2.9' --index-url"
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU128 = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


def driver(version: str, cuda: tuple[int, int] | None, *gpus: Gpu) -> DriverReport:
    """Describe a driver that answers."""
    return DriverReport(gpus=gpus or (H100,), version=version, cuda=cuda)


def build(cuda: str | None, *, devices: int = 0, architectures: tuple[str, ...] = CU130) -> TorchBuild:
    """Describe a torch."""
    return TorchBuild(
        version="2.13.0",
        built_for=cuda,
        has_cuda=devices > 0,
        devices=devices,
        architectures=architectures if cuda else (),
    )


def machine(driver: DriverReport, torch: TorchBuild | None, **more: Any) -> CudaFacts:
    """Describe a machine on which all else is well."""
    facts = CudaFacts(driver=driver, torch=torch, kernel_driver=driver.version, compiler="/usr/bin/gcc", python="3.12")
    return replace(facts, **more)


MACHINES: dict[str, tuple[CudaFacts, str, str, str, str]] = {
    # name: (facts, of which line, its verdict, what is found, what to do)
    "all is well": (
        machine(driver("580.65", (13, 0)), build("13.0", devices=1)),
        "torch", "ok", "2.13.0, built for CUDA 13.0, sees 1 of 1 GPUs", "",
    ),
    "driver 535, build for 13.0": (
        machine(driver("535.183", (12, 2)), build("13.0")),
        "torch", "bad", "built for CUDA 13.0, but NVIDIA's driver 535.183 knows CUDA 12.2 at most",
        f"run: {PIP} https://download.pytorch.org/whl/cu126; or update NVIDIA's driver to 580 or later",
    ),
    "driver 535, build for 13.0 with NVIDIA's packages for forward compatibility": (
        machine(driver("535.183", (12, 2)), build("13.0", devices=1)),
        "torch", "note", "sees 1 of 1 GPUs; NVIDIA's driver 535.183 knows CUDA 12.2", "works; if kernels",
    ),
    "driver 570, build for 13.0": (
        machine(driver("570.86", (12, 8)), build("13.0")),
        "torch", "bad", "knows CUDA 12.8 at most", "whl/cu126",
    ),
    "driver 535, build for 12.8": (
        machine(driver("535.183", (12, 2)), build("12.8", devices=1, architectures=CU128)),
        "torch", "note", "knows CUDA 12.2, an older version", "works; if kernels cannot be loaded",
    ),
    "driver 535, build for 12.8, and it does not work": (
        machine(driver("535.183", (12, 2)), build("12.8", architectures=CU128)),
        "torch", "bad", "it cannot use the GPU: NVIDIA's driver 535.183 knows CUDA 12.2 at most", "whl/cu126",
    ),
    "driver 570, build for 12.6": (
        machine(driver("570.86", (12, 8)), build("12.6", devices=1, architectures=CU126)),
        "torch", "ok", "built for CUDA 12.6", "",
    ),
    "driver 470, build for 12.6": (
        machine(driver("470.1", (11, 4)), build("12.6", architectures=CU126)),
        "torch", "bad", "knows CUDA 11.4 at most", "update NVIDIA's driver to 525 or later",
    ),
    "driver that says its version alone": (
        machine(driver("535.183", None), build("13.0")),
        "torch", "bad", "knows CUDA 12.2 at most", "whl/cu126",
    ),
    "build for the CPU": (
        machine(driver("580.65", (13, 0)), build(None)),
        "torch", "bad", "built for the CPU, but there is a GPU (NVIDIA H100)", "whl/cu130",
    ),
    "old card, build for 13.0": (
        machine(driver("580.65", (13, 0), GTX), build("13.0", devices=1)),
        "torch", "bad", "has no code for GTX 1080 (compute capability 6.1; it has sm_75,", "whl/cu126",
    ),
    "old card, build for 12.6": (
        machine(driver("580.65", (13, 0), GTX), build("12.6", devices=1, architectures=CU126)),
        "torch", "ok", "built for CUDA 12.6", "",
    ),
    "new card, build for 12.6": (
        machine(driver("570.86", (12, 8), replace(H100, capability=(12, 0))), build("12.6", architectures=CU126)),
        "torch", "bad", "compute capability 12.0", "whl/cu128",
    ),
    "card that is too old for all": (
        machine(driver("470.1", (11, 4), replace(GTX, capability=(3, 7))), build("12.6", architectures=CU126)),
        "torch", "bad", "knows CUDA 11.4", "--device cpu",
    ),
    "one of two cards in an error state": (
        machine(driver("580.65", (13, 0), H100, H100), build("13.0", devices=1)),
        "torch", "bad", "sees 1 of 2 GPUs", "nvidia-smi",
    ),
    "no file for unified memory": (
        machine(driver("580.65", (13, 0)), build("13.0"), missing_files=("/dev/nvidia-uvm",)),
        "torch", "bad", "/dev/nvidia-uvm is missing", "sudo nvidia-modprobe -u -c 0",
    ),
    "torch that cannot be imported": (
        machine(driver("580.65", (13, 0)), TorchBuild(version="2.13.0", error="OSError: libx.so")),
        "torch", "bad", "cannot be imported: OSError: libx.so", "--force-reinstall",
    ),
    "no torch": (
        machine(driver("580.65", (13, 0)), None), "torch", "note", "not installed", "pip install 'zmqrt[worker,models]'"
    ),
    "no GPU": (
        CudaFacts(driver=DriverReport(why_none="NVML: not found"), torch=build(None)),
        "GPUs", "note", "no GPU: models run on the CPU (NVML: not found)", "if there is one",
    ),
    "no GPU, and a torch for the CPU": (
        CudaFacts(torch=build(None)), "torch", "ok", "2.13.0, built for the CPU", ""
    ),
    "no driver": (
        CudaFacts(pci_gpus=2), "GPUs", "note", "2 NVIDIA GPUs on the bus, but no driver", "sudo ubuntu-drivers install"
    ),
    "driver updated while it ran": (
        CudaFacts(driver=DriverReport(why_none="NVML: Driver/library version mismatch"), kernel_driver="535.1"),
        "GPUs", "bad", "the old one still runs", "run: sudo reboot",
    ),
    "nothing to ask the driver with": (
        CudaFacts(driver=DriverReport(why_none=NO_BINDINGS), kernel_driver="535.1"),
        "GPUs", "bad", "nothing to ask it with", "run: pip install nvidia-ml-py",
    ),
    "container without the GPU": (
        CudaFacts(kernel_driver="535.1", pci_gpus=1, is_container=True, missing_files=("/dev/nvidiactl",)),
        "GPUs", "bad", "this machine has a GPU, but this container has not", "docker run --gpus all",
    ),
    "no files": (
        CudaFacts(kernel_driver="535.1", pci_gpus=1, missing_files=("/dev/nvidiactl", "/dev/nvidia0")),
        "GPUs", "bad", "/dev/nvidiactl, /dev/nvidia0 is missing", "sudo nvidia-modprobe",
    ),
    "files of others": (
        CudaFacts(kernel_driver="535.1", pci_gpus=1, closed_files=("/dev/nvidia0",)),
        "GPUs", "bad", "this user may not open /dev/nvidia0", 'sudo usermod -aG video,render "$USER"',
    ),
    "driver that lists nothing": (
        CudaFacts(kernel_driver="535.1"), "GPUs", "bad", "it lists no GPU", "nvidia-smi"
    ),
    "hidden": (
        machine(driver("580.65", (13, 0)), None, setting="-1"),
        "GPUs", "note", "hidden by CUDA_VISIBLE_DEVICES=-1", "run: unset CUDA_VISIBLE_DEVICES",
    ),
    "MIG with slices": (
        machine(driver("580.65", (13, 0), replace(H100, slices=(H100, H100))), None),
        "GPUs", "ok", "NVIDIA H100 (80.0 GiB), 2 MIG slices", "",
    ),
    "MIG without a slice": (
        machine(driver("580.65", (13, 0), replace(H100, slices=())), None),
        "GPUs", "bad", "in MIG mode without a slice", "sudo nvidia-smi mig -cgi 0 -C",
    ),
    "no compiler": (
        machine(driver("580.65", (13, 0)), build("13.0", devices=1), compiler=""),
        "compiler", "note", "a C compiler is missing: Triton's kernels cannot be built", "run: sudo apt install gcc",
    ),
    "no headers": (
        machine(driver("580.65", (13, 0)), build("13.0", devices=1), headers="/usr/include/python3.12"),
        "compiler", "note", "Python.h (/usr/include/python3.12) is missing", "run: sudo apt install python3.12-dev",
    ),
    "neither, where dnf is": (
        machine(driver("580.65", (13, 0)), build("13.0", devices=1), compiler="", headers="/usr", installer="dnf"),
        "compiler", "note", "a C compiler and Python.h", "run: sudo dnf install gcc python3-devel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MACHINES))
def test_each_machine_is_told_what_is_wrong_and_the_command_that_repairs_it(name: str) -> None:
    """What is well has no remedy, and all else has one."""
    facts, line, verdict, found, remedy = MACHINES[name]
    (said,) = [one for one in diagnose(facts) if one.name == line]

    assert said.verdict == verdict, said
    assert found in said.found
    assert remedy in said.remedy
    assert bool(said.remedy) == (verdict != "ok")


@pytest.mark.parametrize("name", [name for name, (_, _, verdict, _, _) in MACHINES.items() if verdict == "ok"])
def test_a_machine_that_is_well_has_nothing_bad(name: str) -> None:
    """A command behind `zmqrt doctor &&` runs."""
    assert all(one.verdict != "bad" for one in diagnose(MACHINES[name][0]))


def test_a_machine_without_a_gpu_needs_no_compiler() -> None:
    """Nothing is built there."""
    assert [one.name for one in diagnose(CudaFacts(torch=build(None)))] == ["GPUs", "torch"]


def test_what_only_its_remedy_changes_is_lasting() -> None:
    """A card in an error state may come back; a build for another CUDA does not become one for this."""
    lasting = {name for name, (facts, *_) in MACHINES.items() if judge_torch(facts).is_lasting}

    assert "driver 535, build for 13.0" in lasting
    assert "old card, build for 13.0" in lasting
    assert "one of two cards in an error state" not in lasting
    assert "no file for unified memory" not in lasting


def test_gpus_are_counted_and_named() -> None:
    """With their memory; and those that are hidden."""
    facts = machine(driver("580.65", (13, 0), H100, H100), None)

    assert judge_gpus(facts) == Diagnosis("GPUs", "ok", "2 x NVIDIA H100 (80.0 GiB)")
    assert judge_gpus(replace(facts, setting="1")).found.endswith("1 of them hidden by CUDA_VISIBLE_DEVICES")
