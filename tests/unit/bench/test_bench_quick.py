"""What a request costs the cores is counted alike each time, and what has become dearer is told from what has not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import core_counts
import msgspec
import pytest
from bench_quick import Expected, Finding, measure_counts

BENCH = Path(core_counts.__file__).parent


@pytest.fixture(scope="module")
def here() -> dict[str, core_counts.Count]:
    """What is counted in this process."""
    return measure_counts()


def test_counts_are_the_same_each_time(here: dict[str, core_counts.Count]) -> None:
    """Also in a process of its own, where strings hash to other numbers."""
    code = "import bench_quick, msgspec; print(msgspec.json.encode(bench_quick.measure_counts()).decode())"
    there = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True, check=True)

    again = msgspec.json.decode(there.stdout, type=dict[str, core_counts.Count])
    assert again.keys() == here.keys()
    for name, count in here.items():  # a timer that goes off on a busy machine is a tenth of a percent
        assert again[name].bytecodes == pytest.approx(count.bytecodes, rel=0.002), name
        assert again[name].c_calls == pytest.approx(count.c_calls, rel=0.002), name
    assert all(count.bytecodes > 0 and count.c_calls > 0 for count in here.values())


def test_only_growth_beyond_what_is_allowed_is_dearer() -> None:
    """What is new, or cheaper, fails nothing."""
    dearer, same, cheaper, new = (Finding("x", 10.0, was, 1.02) for was in (9.7, 9.9, 10.3, None))

    assert [one.is_dearer for one in (dearer, same, cheaper, new)] == [True, False, False, False]
    assert [one.verdict for one in (same, cheaper, new)] == ["as before", "cheaper", "new"]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the figures that are kept are those of Python 3.11")
def test_every_count_has_a_figure_that_was_accepted(here: dict[str, core_counts.Count]) -> None:
    """So that none is let pass as new."""
    expected = msgspec.json.decode((BENCH / "expected.json").read_bytes(), type=Expected)

    assert expected.counts["3.11"].keys() == here.keys()
