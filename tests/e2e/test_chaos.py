"""`make chaos` as its users run it: a short storm over real processes, and a fleet that is there already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.stack import running

BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def chaos(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run it; return exit code, report and what it said."""
    command = [sys.executable, "-m", "chaos", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False, cwd=BENCH)
    print(done.stderr)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.mark.slow
def test_a_short_storm_loses_nothing() -> None:
    """One fault of each kind but the restarts, whose drains take their time."""
    kinds = ("worker-kill=3", "worker-freeze=1", "worker-partition=1", "broker-kill=1")
    faults = [word for kind in kinds for word in ("--fault", kind)]
    load = ("--streams", "30", "--unary", "5", "--clients", "2", "--nodes", "3")
    code, report, _ = chaos("--seed", "11", "--duration", "8", *load, *faults)

    assert report["problems"] == []
    assert code == 0
    assert (report["lost"], report["duplicated"], report["wrong"]) == (0, 0, 0)
    assert report["requests"] == report["answered"] >= 35
    assert len(report["faults"]) == 6
    assert all(fault["open"] for fault in report["faults"])


@pytest.mark.slow
def test_a_storm_that_proves_too_little_fails() -> None:
    """No fault, so no resume: exit 1, and the reason is named."""
    load = ("--streams", "2", "--unary", "0", "--nodes", "1", "--brokers", "1", "--fault", "worker-kill=0")
    code, report, _ = chaos("--duration", "1", *load, "--min-resumes", "1")

    assert code == 1
    assert report["problems"] == ["only 0 resumes, 1 are the least that proves anything"]


def test_a_fleet_that_runs_already_is_loaded_and_judged() -> None:
    """Nothing is broken there by the command; its counters begin with the run."""
    with running(nodes=1, worker=("--engine-opt", "step_ms=5")) as stack:
        load = ("--streams", "5", "--unary", "1", "--clients", "1")
        code, report, _ = chaos("--duration", "2", "--broker", stack.clients, *load)

    assert code == 0
    assert report["faults"] == []
    assert report["answered"] == report["requests"] > 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fault", "worker-hug=1"), "is not KIND=COUNT with one of: worker-kill"),
        (("--streams", "0", "--unary", "0"), "nothing to ask"),
        (("--heartbeat-interval", "3"), "must be above --heartbeat-interval"),
        (("--fault", "worker-kill=-1"), "is not KIND=COUNT"),
        (("--broker", "tcp://127.0.0.1:1", "--fault", "worker-kill=1"), "you break it"),
        (("--insecure",), "are for --broker"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], words: str) -> None:
    """Before anything is started."""
    code, _, said = chaos(*arguments)

    assert code == 2
    assert words in said
