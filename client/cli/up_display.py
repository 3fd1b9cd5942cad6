"""Where `zmqrt up` shows its view: redrawn on a terminal, line by line in a log."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import click
from rich.live import Live
from rich.text import Text

from ...protocol.sanitize import printable, readable
from ...protocol.snapshot import Snapshot
from ..top.text import Clean
from .screen import screen
from .stack import message_of
from .stdio import is_terminal
from .supervise import Child
from .up_view import Ticker, live_view


class Display(Protocol):
    """What a display can be told."""

    def show(self, children: Sequence[Child], snapshot: Snapshot | None, hints: Sequence[str]) -> None:
        """Show how things are; hints come once requests are served."""
        ...

    def say(self, words: str) -> None:
        """Say something once."""
        ...

    def clear(self) -> None:
        """Show nothing more, so that the terminal is free for something else."""
        ...


class LogDisplay:
    """Tells each change in a line; for pipes and files."""

    def __init__(self) -> None:
        self._ticker = Ticker()
        self._has_hinted = False

    def show(self, children: Sequence[Child], snapshot: Snapshot | None, hints: Sequence[str]) -> None:
        """Tell what is new."""
        for line in self._ticker.lines(children, snapshot):
            self.say(line)
        if hints and not self._has_hinted:
            self._has_hinted = True
            self.say("\n".join(["", *hints, ""]))

    def say(self, words: str) -> None:
        """Print a line."""
        click.echo(readable(words))

    def clear(self) -> None:
        """Leave what has been told."""


class LiveDisplay:
    """Redraws one view at the bottom of the terminal; what is said scrolls by above it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._has_hinted = False

    def show(self, children: Sequence[Child], snapshot: Snapshot | None, hints: Sequence[str]) -> None:
        """Draw the view anew; the hints are printed once, whole lines, so that they can be copied."""
        if hints and not self._has_hinted:
            self._has_hinted = True
            self.say("\n".join([*hints, ""]))
        self._live.update(Clean(live_view(children, snapshot)), refresh=True)

    def say(self, words: str) -> None:
        """Print a line above the view."""
        self._live.console.print(Text(words), soft_wrap=True)

    def clear(self) -> None:
        """Take the view away."""
        self._live.update(Text(), refresh=True)
        self._live.stop()


@contextlib.contextmanager
def display() -> Generator[Display]:
    """Choose what fits standard output."""
    if not is_terminal():
        yield LogDisplay()
        return
    with Live(console=screen(), auto_refresh=False, transient=True, vertical_overflow="visible") as live:
        yield LiveDisplay(live)


def tell_record(shown: Display, child: Child, record: dict[str, Any]) -> None:
    """Pass on what a role logs, where a person should see it."""
    words = message_of(record)
    if words is not None:
        shown.say(printable(f"{child.name}: {words}"))


def tell_end(shown: Display, child: Child, why: str) -> None:
    """Tell that a child has ended and comes back."""
    shown.say(printable(f"{child.name} ended: {why}; starting it again"))
