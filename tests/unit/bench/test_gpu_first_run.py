"""The first run on a GPU, with a child that plays one: what ends it, and what is kept then."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_first_run
import pytest
from gpu_first_run import FirstRun, ReportFile, items_for, starter

BENCH = Path(gpu_first_run.__file__).parent
CHILD = """
import json, os, sys

_, writing, *items = sys.argv[1:]

def tell(*events):
    os.write(int(writing), b"".join(json.dumps(event).encode() + b"\\n" for event in events))

for item in items:
    tell({"event": "begin"}, {"event": "figure", "name": "process", "value": os.getpid()})
    if item == "hangs":
        sys.stdin.read()
        sys.exit()
    if item == "dies":
        os._exit(3)
    if item == "fails":
        tell({"event": "failed", "error": "no such kernel"})
        sys.exit(1)
    for number in range(2000 if item == "long" else 1):
        tell({"event": "figure", "name": f"batch {number}", "value": {"step_ms": 1.5}})
    tell({"event": "done"})
"""
DRIVER = """
import os, sys
from pathlib import Path
from gpu_first_run import FirstRun, ReportFile, starter

child, out, *items = sys.argv[1:]
start = starter(Path(child), "cpu", os.environ)
FirstRun(start, dict.fromkeys(items, 60.0), ReportFile(Path(out), {}, items), 60.0).run()
"""


@pytest.fixture
def child(tmp_path: Path) -> Path:
    """A program that measures nothing, and ends as it is told."""
    path = tmp_path / "child.py"
    path.write_text(CHILD)
    return path


def run(child: Path, limits: dict[str, float], limit_s: float = 60.0) -> dict[str, Any]:
    """Run these items; return what the file says of them."""
    report = ReportFile(child.with_name("report.json"), {}, list(limits))
    FirstRun(starter(child, "cpu", os.environ), limits, report, limit_s).run()
    found: dict[str, Any] = json.loads(report.path.read_text())["items"]
    return found


def test_an_item_that_fails_dies_or_hangs_costs_only_itself(child: Path) -> None:
    """What it had measured is kept, and the next one has a new process."""
    found = run(child, {"fails": 60.0, "dies": 60.0, "hangs": 0.2, "good": 60.0, "too": 60.0})

    assert [one["state"] for one in found.values()] == ["failed", "failed", "cut off", "done", "done"]
    assert [found[item]["error"] for item in ("fails", "dies")] == ["no such kernel", "its process ended (3)"]
    processes = [one["figures"]["process"] for one in found.values()]
    assert len(set(processes)) == 4
    assert processes[3] == processes[4]


def test_what_there_is_no_time_for_is_left_out(child: Path) -> None:
    """And the file says so."""
    found = run(child, {"hangs": 60.0, "good": 60.0}, limit_s=0.2)

    assert (found["hangs"]["state"], found["good"]["state"]) == ("cut off", "left out")


def test_kill_9_leaves_a_readable_file_with_all_that_was_printed(child: Path) -> None:
    """At any moment: between items, and while figures come as fast as they can be written."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rnd = random.Random(seed)
    for attempt in range(3):
        out = child.with_name(f"{attempt}.json")
        lines = rnd.randrange(3, 60)
        with subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(child), str(out), "good", "long", "good2"],
            env={**os.environ, "PYTHONPATH": str(BENCH)},
            stdout=subprocess.PIPE,
            text=True,
        ) as driver:
            assert driver.stdout is not None
            printed = [driver.stdout.readline() for _ in range(lines)]
            driver.send_signal(signal.SIGKILL)
        found = json.loads(out.read_text())["items"]

        figures = [line.split(": ")[1] for line in printed if " long: batch" in line]
        assert (found["good"]["state"], found["good2"]["state"]) == ("done", "not begun")
        assert found["long"]["state"] in (["under way"] if figures else ["under way", "not begun"])
        assert found["long"]["figures"].keys() >= set(figures), lines


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_what_is_right_comes_before_what_is_fast_and_others_come_last(device: str) -> None:
    """On a CPU the same items, with a tiny shape."""
    items = list(items_for(device))

    assert items[:3] == ["machine", "differences", "attention"]
    assert items[-3:] == ["tests", "kill", "continuous"]
