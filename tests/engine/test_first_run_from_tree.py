"""The whole first run on a CPU, from the sources, by a Python that has torch but neither zmqrt nor what zmqrt needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from bare_machine import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ABSENT = ("msgspec", "zmq", "pyzmq", "zmqrt", "__editable__")


def bare_python(folder: Path) -> Path:
    """Make an environment with all that is here but what a machine lacks that has torch alone."""
    venv.create(folder / "venv", symlinks=True)
    links = folder / "links"
    links.mkdir()
    for place in (Path(entry) for entry in sys.path if Path(entry).name == "site-packages"):
        for entry in place.iterdir():
            if entry.suffix != ".pth" and not entry.name.startswith(ABSENT) and not (links / entry.name).exists():
                (links / entry.name).symlink_to(entry)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "links.pth").write_text(f"{links}\n")
    return folder / "venv" / "bin" / "python"


def carry(package: str, wheels: Path) -> None:
    """Make a wheel of a package that is installed here."""
    found = distribution(package)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / f"{package}-{found.version}-{tag}-{tag}-linux_x86_64.whl", "w") as wheel:
        for file in found.files or ():
            if file.suffix in {".py", ".so"}:
                wheel.write(str(file.locate()), file.as_posix())


def first_run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with nothing from this environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "VIRTUAL"))}
    return subprocess.run(
        [str(python), str(ROOT / "bench" / "gpu_first_run.py"), "--device", "cpu", *arguments],
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=230,
    )


def test_a_machine_with_torch_alone_runs_all_of_it(tmp_path: Path) -> None:
    """It says what is lacking; with that carried there as a wheel every item is done."""
    python = bare_python(tmp_path)
    wheels = ("--wheels", str(tmp_path / "wheels"))

    lacking = first_run(python, *wheels)
    carry("msgspec", tmp_path / "wheels")
    ran = first_run(python, *wheels, "--out", str(tmp_path / "out"), "--limit", "220")

    assert (lacking.returncode, "msgspec: put wheels for Python" in lacking.stderr) == (2, True), lacking.stderr
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [report] = (tmp_path / "out").glob("gpu-*.json")
    items = json.loads(report.read_text())["items"]
    assert {one["state"] for one in items.values()} == {"done"}
    assert items["steps-tiny"]["figures"]["definition, plain, batch 3"]["batch"] == 3
    assert all(one["exact"] == one["streams"] for one in items["kill"]["figures"].values())
