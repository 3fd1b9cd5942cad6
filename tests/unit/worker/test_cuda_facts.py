"""What is gathered of a machine: one laid out as files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zmqrt.worker.cuda_facts import gather, torch_build
from zmqrt.worker.nvidia_driver import DriverReport

VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version: 12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n"


def lay_out(root: Path, files: dict[str, str]) -> Path:
    """Write the files of a machine."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def pci(number: int, vendor: str, kind: str) -> dict[str, str]:
    """Write a device of the bus."""
    folder = f"sys/bus/pci/devices/0000:0{number}:00.0"
    return {f"{folder}/vendor": f"{vendor}\n", f"{folder}/class": f"{kind}\n"}


@pytest.mark.parametrize(("text", "version"), [(VERSION, "535.183.01"), (OPEN, "570.86.10")])
def test_a_machine_is_read_from_its_files(tmp_path: Path, text: str, version: str) -> None:
    """Driver, bus, and which of the driver's files are there."""
    root = lay_out(
        tmp_path,
        {
            "proc/driver/nvidia/version": text,
            "dev/nvidiactl": "",
            "dev/nvidia0": "",
            ".dockerenv": "",
            **pci(1, "0x10de", "0x030200"),
            **pci(2, "0x10de", "0x040300"),  # its sound
            **pci(3, "0x1002", "0x030000"),
        },
    )
    facts = gather(DriverReport(), {"CUDA_VISIBLE_DEVICES": "0"}, root=root)

    assert (facts.kernel_driver, facts.pci_gpus, facts.setting, facts.is_container) == (version, 1, "0", True)
    assert facts.missing_files == (str(tmp_path / "dev/nvidia-uvm"),)
    assert facts.has_gpu
    assert facts.python == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_machine_without_any_of_it_has_no_gpu(tmp_path: Path) -> None:
    """And misses no file."""
    facts = gather(DriverReport(), {}, root=tmp_path)

    assert not facts.has_gpu
    assert (facts.missing_files, facts.closed_files, facts.is_container) == ((), (), False)


def test_the_subsystem_of_windows_has_other_files(tmp_path: Path) -> None:
    """It misses none."""
    root = lay_out(tmp_path, {"proc/driver/nvidia/version": VERSION, "dev/dxg": ""})

    assert gather(DriverReport(), {}, root=root).missing_files == ()


@pytest.mark.skipif(sys.platform == "win32", reason="programs have other names there")
def test_the_compiler_is_the_one_that_triton_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CC, which need not be there; else gcc, else clang."""
    for name in ("clang", "gcc", "mine"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [gather(DriverReport(), environ).compiler for environ in ({}, {"CC": "mine -O2"}, {"CC": "absent"})]
    (tmp_path / "gcc").unlink()
    found.append(gather(DriverReport(), {}).compiler)

    assert [Path(path).name for path in found] == ["gcc", "mine", "", "clang"]


@pytest.mark.slow
def test_torch_is_asked() -> None:
    """The one that is installed here."""
    pytest.importorskip("torch")
    build = torch_build()

    assert build is not None
    assert build.error == ""
    assert build.version[0].isdigit()
