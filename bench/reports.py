"""What every report of a bench begins with, and the file that it goes into."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import zmq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

HERE: Final = Path(__file__).parent


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """How, with what and where it was measured; a report adds what came of it."""

    command: str
    versions: dict[str, str]
    machine: str
    cores: int
    date: str
    load_average: tuple[float, float, float]
    commit: str = ""
    """What was measured, where git knows it."""


def circumstances(*packages: str) -> dict[str, Any]:
    """Return those of this run, with the versions of these packages too: the first fields of its report."""
    return {
        # Where a program was found says nothing to others.
        "command": re.sub(r"=\S*/", "=", " ".join(["python", *sys.argv])),
        "versions": {
            **{name: version(name) for name in ("zmqrt", "pyzmq", "msgspec", *packages)},
            "python": platform.python_version(),
            "libzmq": zmq.zmq_version(),
        },
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 0,
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0),
    }


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    asked = [git, "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def write(report: Circumstances, name: str, *, is_kept: bool) -> str:
    """Write it to bench/results/, which git keeps, or to bench/out/; return the path as people see it."""
    folder = HERE / ("results" if is_kept else "out")
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime(f"{name}-%Y%m%d-%H%M%S.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return os.path.relpath(path)


def find_programs(names: Sequence[str], given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Find programs among `NAME=PATH` or on PATH; return where they are, and the names of those that are left out."""
    named = dict(one.split("=", 1) for one in given)
    there = {name: program for name in names if (program := named.get(name) or shutil.which(name))}
    missing = [name for name in names if name not in there]
    for name in missing:
        click.echo(f"{name}: left out, its program was not found", err=True)
    return there, missing


class Step:
    """Shows what is being measured, and counts it when it is done."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=total)

    @contextlib.contextmanager
    def __call__(self, what: str) -> Generator[None]:
        """Show it as long as it takes."""
        self._bar.update(self._task, description=what)
        yield
        self._bar.advance(self._task)


@contextlib.contextmanager
def progress(total: int) -> Generator[Step]:
    """Show a bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Step(bar, total)
