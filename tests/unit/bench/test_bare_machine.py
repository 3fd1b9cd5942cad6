"""A machine without our packages: which wheels are taken, and what is said when one is missing."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import bare_machine
import pytest

OURS = f"cp{sys.version_info.major}{sys.version_info.minor}"


def carry(folder: Path, name: str) -> None:
    """Put a wheel there that has one package."""
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr(f"{name.partition('-')[0]}/__init__.py", "")


def test_wheels_that_fit_and_are_missing_are_unpacked(tmp_path: Path) -> None:
    """One for another Python is not, nor one of a package that is there."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    carry(wheels, f"zmqrt_native-1.0-{OURS}-{OURS}-manylinux_2_17_x86_64.manylinux2014_x86_64.whl")
    carry(wheels, "zmqrt_stable-1.0-cp38-abi3-manylinux_2_17_x86_64.whl")
    carry(wheels, "zmqrt_pure-1.0-py2.py3-none-any.whl")
    carry(wheels, "zmqrt_other-1.0-cp27-cp27m-manylinux1_x86_64.whl")
    carry(wheels, "msgspec-0.1-py3-none-any.whl")

    found = bare_machine.python_path(tmp_path, wheels)

    assert found[0] == str(bare_machine.ROOT / "bench")
    assert [next(Path(one).iterdir()).name for one in found[1:]] == ["zmqrt_native", "zmqrt_pure", "zmqrt_stable"]


def test_what_is_lacking_is_named_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that was carried counts as there."""
    monkeypatch.setattr(bare_machine, "NEEDED", ("msgspec", "zmqrt_carried", "zmqrt_nowhere"))
    (tmp_path / "zmqrt_carried").mkdir()

    assert bare_machine.lacking([str(tmp_path)]) == ["zmqrt_nowhere"]


def test_children_find_ours_first_and_what_the_user_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By PYTHONPATH, which their own children inherit; nobody times kernels in an interpreter."""
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    environment = bare_machine.environment(["/a", "/b"])

    assert environment["PYTHONPATH"] == os.pathsep.join(["/a", "/b", "/theirs"])
    assert "TRITON_INTERPRET" not in environment
