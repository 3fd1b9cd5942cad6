"""What is installed, judged: too old, missing, or built without something."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from zmqrt.client.doctor import models
from zmqrt.client.doctor.check import Check, show_version
from zmqrt.client.doctor.gpu import TORCH
from zmqrt.client.doctor.software import NEEDED, PYTHON, Software, judge

GOOD = Software(
    python="3.11.7",
    packages={"zmqrt": "0.1.0", "pyzmq": "27.3.0", "msgspec": "0.22.0", "msgpack": "1.2.4", "uvloop": "0.23.0"},
    libzmq="4.3.5",
    has_curve=True,
    has_ipc=True,
)
PROJECT = tomllib.loads((Path(__file__).resolve().parents[4] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def unwell(here: Software, *, has_keys: bool = False) -> list[Check]:
    """Return what is not ok."""
    return [one for one in judge(here, has_keys=has_keys) if one.verdict != "ok"]


def without(name: str, version: str | None = None) -> Software:
    """Remove a package, or give it another version."""
    return replace(GOOD, packages={**GOOD.packages, name: version})


def test_what_the_tests_run_with_is_well() -> None:
    """Every check is there, and none complains."""
    assert unwell(GOOD) == []
    assert {"Python", "zmqrt", "pyzmq", "libzmq", "uvloop", "encryption"} <= {
        one.name for one in judge(GOOD, has_keys=True)
    }


def test_an_old_python_is_bad() -> None:
    """Nothing else would start at all."""
    (one,) = unwell(replace(GOOD, python="3.10.14"))

    assert (one.verdict, one.name) == ("bad", "Python")
    assert "3.11" in one.remedy


@pytest.mark.parametrize("version", [None, "0.0.9"])
@pytest.mark.parametrize("name", NEEDED)
def test_a_package_that_is_missing_or_old_is_bad(name: str, version: str | None) -> None:
    """The remedy can be pasted."""
    (one,) = unwell(without(name, version))

    assert (one.verdict, one.name) == ("bad", name)
    assert f"pip install --upgrade '{name}>=" in one.remedy


def test_uvloop_is_not_needed() -> None:
    """It only makes servers faster, and does not exist on Windows."""
    (one,) = unwell(without("uvloop"))

    assert one.verdict == "note"
    assert unwell(replace(without("uvloop"), is_windows=True)) == []


def test_zmqrt_from_a_folder_is_a_note() -> None:
    """It works."""
    assert [one.verdict for one in unwell(without("zmqrt"))] == ["note"]


@pytest.mark.parametrize(("version", "verdict"), [("4.3.2", "bad"), ("4.2.5", "bad"), ("4.3.3", "note")])
def test_an_old_libzmq_says_why_it_matters(version: str, verdict: str) -> None:
    """Known holes are bad, known bugs are a note."""
    (one,) = unwell(replace(GOOD, libzmq=version))

    assert one.verdict == verdict
    assert ("CVE" in one.found) == (verdict == "bad")
    assert "pyzmq" in one.remedy


def test_encryption_is_missed_where_there_are_keys() -> None:
    """Else somebody may want to know."""
    here = replace(GOOD, has_curve=False)

    assert [one.verdict for one in unwell(here)] == ["note"]
    assert [one.verdict for one in unwell(here, has_keys=True)] == ["bad"]


def test_without_ipc_no_worker_runs() -> None:
    """A client does."""
    (one,) = unwell(replace(GOOD, has_ipc=False))

    assert one.verdict == "note"
    assert "worker" in one.found


def test_the_oldest_versions_are_those_of_the_project_file() -> None:
    """Both say what is meant to work."""
    for name, oldest in NEEDED.items():
        assert f"{name}>={show_version(oldest)}" in PROJECT["dependencies"]
    lowest, below = map(show_version, models.TRANSFORMERS)

    assert PROJECT["requires-python"] == f">={show_version(PYTHON)}"
    assert f"torch>={show_version(TORCH)}" in PROJECT["optional-dependencies"]["worker"]
    assert f"transformers>={lowest},<{below}" in PROJECT["optional-dependencies"]["worker"]
