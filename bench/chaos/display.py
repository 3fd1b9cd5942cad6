"""Shows a run on standard error: each fault as a line, and how far the run is below them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from zmqrt.client.cli.text import screen

from .fleet import InjectedFault
from .judge import Judge


class RunDisplay:
    """What is shown while a run goes on."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def phase(self, words: str) -> None:
        """Show what is being done now."""
        self._progress.console.print(f"{words} …", style="dim")

    def injected(self, injected: InjectedFault) -> None:
        """Show a fault."""
        fault = injected.fault
        lasts = f" for {fault.lasts_s:.1f} s" if fault.lasts_s else ""
        at, where = f"{injected.at_s:6.1f} s", f"{fault.kind.value} {injected.victim}{lasts}"
        self._progress.console.print(f"{at}  {where}, {injected.open_requests} open on it")

    def progress(self, at_s: float, judge: Judge, faults_left: int) -> None:
        """Show how far it is."""
        words = f"{len(judge.open)} open, {judge.answered} answered, {judge.lost} lost, {faults_left} faults left"
        self._progress.update(self._task, completed=at_s, description=words)


@contextlib.contextmanager
def open_display(duration_s: float) -> Generator[RunDisplay]:
    """Show a run while in the block; the bar only on a terminal."""
    console = screen(stderr=True)
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield RunDisplay(progress, progress.add_task("", total=duration_s))
