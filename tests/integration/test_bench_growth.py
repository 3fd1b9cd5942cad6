"""The benches of growth and of overload, in sizes that take seconds: they run, and nothing is lost in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from bench_growth import Report as GrowthReport
from bench_growth import Size, leave_out
from bench_overload import Report as OverloadReport

pytestmark = [pytest.mark.integration]
BENCH = Path(__file__).parents[2] / "bench"


def run(script: str, *arguments: str) -> bytes:
    """Run a bench; return what it wrote to its file."""
    command = [sys.executable, str(BENCH / script), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    (path,) = re.findall(r"written to (.*\.json)", ended.stdout)
    try:
        return Path(path).read_bytes()
    finally:
        Path(path).unlink()


@pytest.mark.slow
def test_growth_is_measured_with_a_small_crowd() -> None:
    """Over one broker and over two; then a small storm, after which all are there again."""
    sizes = ("--size", "20/20/1", "--size", "12/12/2")
    short = ("--pairs", "1", "--seconds", "0.5", "--rate", "200", "--storm", "40", "--storms", "1")
    report = msgspec.json.decode(run("bench_growth.py", *sizes, *short), type=GrowthReport)

    assert [growth.size for growth in report.growths] == [Size(20, 20, 1), Size(12, 12, 2)]
    for growth in report.growths:
        assert not any(sample.refused for sample in (*growth.samples, *growth.without))
        assert growth.samples[0].whole_cpu_us > 0
    (storm,) = report.storms
    assert storm.clients == 40
    assert storm.refused == 0


@pytest.mark.slow
def test_overload_is_measured_with_a_small_fleet() -> None:
    """What is too much is rejected, and told when to come back."""
    fleet = ("--nodes", "1", "--slots", "4", "--step-ms", "5", "--tokens", "4", "--deadline", "2")
    short = ("--rounds", "1", "--seconds", "2", "--factor", "1", "--factor", "4", "--return-share", "1")
    report = msgspec.json.decode(run("bench_overload.py", *fleet, *short), type=OverloadReport)

    calm, pressed = (pressure.rounds[0] for pressure in report.pressures)
    for outcome in (calm, pressed):
        assert outcome.goodput > 0
        assert (outcome.failed, outcome.unanswered) == (0, 0)
    assert pressed.refused > 0
    assert pressed.told_p50_s > 0
    assert pressed.returned + pressed.returned_after > 0


def test_what_a_machine_does_not_allow_is_left_out_and_told() -> None:
    """A fleet with more connections than descriptors, and a storm of as many."""
    small, large = Size(200, 1, 1), Size(5000, 10_000, 1)

    kept, has_storm, words = leave_out([small, large], 5000, 1024)

    assert (kept, has_storm) == ([small], False)
    assert [line.split(":")[0] for line in words] == [large.name, "storm of 5,000"]
    assert leave_out([small, large], 5000, None) == ([small, large], True, [])
