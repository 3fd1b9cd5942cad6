"""All that a machine with a GPU is asked about this code, in one run of minutes: `python bench/gpu_first_run.py`.

It prints a line for each figure and writes them all to one JSON file each time, so whatever ends the run, what it has
measured is kept. The measuring is done by a child (`gpu_items.py`), for a device that hangs can only be left by ending
the process that waits for it: each item has a limit, and the next one begins in a new process when one was cut off or
has failed. Here is neither torch nor anything else that would have to be installed.

`--device cpu` takes the same way with tiny shapes, to try the script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import bare_machine

HERE: Final = Path(__file__).resolve().parent
LIMIT_S: Final = 420.0
"""Of the whole: two runs fit into a quarter of an hour."""
START_S: Final = 90.0
"""For a process to import torch and find the device, when its files are read for the first time."""
_END_S: Final = 5.0
_LINE: Final = 200
"""Characters of a figure that are printed; the file has all of it."""
SHAPE_ITEMS: Final = {"cuda": {"steps-1b": 120.0, "steps-8b": 150.0}, "cpu": {"steps-tiny": 120.0}}
Start = Callable[[Sequence[str], int], "subprocess.Popen[bytes]"]
"""Starts a process for these items, which writes what it finds to that file descriptor, a JSON object a line."""


def items_for(device: str) -> dict[str, float]:
    """Return what is asked on such a device, in this order, and how many seconds each may take.

    What tells whether the numbers are right comes first, then what tells how fast they are made; what is there to
    compare with comes last.
    """
    return {
        "machine": 30.0,
        "differences": 90.0,
        "attention": 60.0,
        **SHAPE_ITEMS[device.partition(":")[0]],
        "tests": 120.0,
        "kill": 120.0,
        "continuous": 90.0,
    }


class ReportFile:
    """A JSON file that is whole at any moment: each change is a new file that takes the place of the old one."""

    def __init__(self, path: Path, head: Mapping[str, Any], items: Sequence[str]) -> None:
        self.path = path
        self.items: dict[str, dict[str, Any]] = {item: {"state": "not begun", "figures": {}} for item in items}
        self._head = head
        path.parent.mkdir(parents=True, exist_ok=True)
        self.write()

    def write(self) -> None:
        """Write it all."""
        beside = self.path.with_suffix(".part")
        with beside.open("w", encoding="utf-8") as file:
            json.dump({**self._head, "items": self.items}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


class FirstRun:
    """Goes through the items, with a new process wherever one was lost."""

    def __init__(self, start: Start, limits: Mapping[str, float], report: ReportFile, limit_s: float) -> None:
        self._start = start
        self._limits = dict(limits)
        self._report = report
        self._began = time.monotonic()
        self._end_at = self._began + limit_s

    def run(self) -> bool:
        """Ask everything there is time for; True if all of it was answered."""
        left = list(self._limits)
        while left and time.monotonic() < self._end_at:
            left = self._ask(left)
        for item in left:
            self._close(item, "left out", "the time of the whole run was over")
        return all(one["state"] == "done" for one in self._report.items.values())

    def _ask(self, left: Sequence[str]) -> list[str]:
        """Have one process do as much of it as it can; return what is left for the next one."""
        reading, writing = os.pipe()
        process = self._start(left, writing)
        os.close(writing)
        try:
            return self._follow(process, reading, left)
        finally:
            os.close(reading)
            _end(process)

    def _follow(self, process: subprocess.Popen[bytes], reading: int, left: Sequence[str]) -> list[str]:
        waiting, buffer = list(left), b""
        item_end_at = time.monotonic() + START_S
        with selectors.DefaultSelector() as selector:
            selector.register(reading, selectors.EVENT_READ)
            while waiting:
                rest_s = min(item_end_at, self._end_at) - time.monotonic()
                if rest_s <= 0 or not selector.select(rest_s):
                    return self._lose(waiting, "cut off", "its time was over")
                chunk = os.read(reading, 1 << 16)
                if not chunk:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_END_S)
                    return self._lose(waiting, "failed", f"its process ended ({process.returncode})")
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    said = json.loads(line)
                    self._take(waiting[0], said)
                    if said["event"] == "begin":
                        item_end_at = time.monotonic() + self._limits[waiting[0]]
                    elif said["event"] in {"done", "failed"}:
                        waiting.pop(0)
                        item_end_at = time.monotonic() + START_S
                    if said["event"] == "failed":
                        return waiting
        return []

    def _take(self, item: str, said: Mapping[str, Any]) -> None:
        """Keep what a process says of the item that is under way."""
        if said["event"] == "begin":
            self._report.items[item] |= {"state": "under way", "began_s": round(time.monotonic() - self._began, 1)}
            self._report.write()
        elif said["event"] == "figure":
            self._report.items[item]["figures"][said["name"]] = said["value"]
            self._report.write()
            self._print(item, f"{said['name']}: {_words(said['value'])[:_LINE]}")
        else:
            self._close(item, said["event"], said.get("error", ""))

    def _lose(self, waiting: list[str], state: str, why: str) -> list[str]:
        self._close(waiting[0], state, why)
        return waiting[1:]

    def _close(self, item: str, state: str, why: str) -> None:
        found = self._report.items[item]
        found["state"] = state
        if "began_s" in found:
            found["took_s"] = round(time.monotonic() - self._began - found["began_s"], 1)
        if why:
            found["error"] = why
        self._report.write()
        self._print(item, f"{state}{': ' if why else ''}{why}")

    def _print(self, item: str, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {item}: {text}", flush=True)


def _words(value: object) -> str:
    """Say a figure in one line."""
    match value:
        case dict():
            fields = cast("dict[str, object]", value)
            return ", ".join(f"{name.replace('_', ' ')} {_words(one)}" for name, one in fields.items())
        case list():
            return "; ".join(_words(one) for one in cast("list[object]", value))
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, stuck or not."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that a driver holds is left behind
        process.wait(_END_S)
    if process.stdin is not None:
        process.stdin.close()


def starter(program: Path, device: str, env: Mapping[str, str]) -> Start:
    """Return what starts a process of this program, which measures on this device."""

    def start(items: Sequence[str], writing: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(program), device, str(writing), *items],
            env=env,
            pass_fds=(writing,),
            stdin=subprocess.PIPE,  # its end of file tells the child that we are gone
            stdout=sys.stderr,
            start_new_session=True,
        )

    return start


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure all there is to know of a GPU, in minutes, and keep it.")
    parser.add_argument("--device", default="cuda:0", help="cpu: tiny shapes, to try the script (default: cuda:0)")
    parser.add_argument("--only", default="", help="these items alone, with commas between")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="folder of the report (default: bench/out)")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for all of it (default: %(default)g)")
    parser.add_argument("--wheels", type=Path, default=bare_machine.WHEELS, help="folder of wheels that were carried")
    asked = parser.parse_args()
    items = items_for(asked.device)
    chosen = [one for one in asked.only.split(",") if one] or list(items)
    if unknown := [one for one in chosen if one not in items]:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(items)}")
    with tempfile.TemporaryDirectory() as folder:
        path = bare_machine.python_path(Path(folder), asked.wheels)
        if missing := bare_machine.lacking(path):
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            parser.error(f"{', '.join(missing)}: put wheels for Python {version} into {asked.wheels}")
        report = ReportFile(
            asked.out / time.strftime("gpu-%Y%m%d-%H%M%S.json"),
            {
                "command": " ".join(["python", "bench/gpu_first_run.py", *sys.argv[1:]]),
                "date": time.strftime("%Y-%m-%d"),
                "python": platform.python_version(),
            },
            chosen,
        )
        start = starter(HERE / "gpu_items.py", asked.device, bare_machine.environment(path))
        is_whole = FirstRun(start, {one: items[one] for one in chosen}, report, asked.limit).run()
    print(f"written to {os.path.relpath(report.path)}")
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
