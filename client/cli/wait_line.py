"""A line on a terminal's standard error that says where a request stands while it waits; gone when its answer comes."""

from __future__ import annotations

import os
import sys

import click

from ..queue_place import QueuePlace

_CLEARED = "\r\x1b[K"


class WaitLine:
    """Shown for each place that is told; where nobody looks at a terminal, never."""

    def __init__(self) -> None:
        self._is_on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._is_shown = False

    def show(self, place: QueuePlace) -> None:
        """Show where it stands, in place of what was shown before."""
        if self._is_on_terminal:
            click.echo(f"{_CLEARED}{click.style(f'waiting: {place}', dim=True)}", err=True, nl=False)
            self._is_shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._is_shown:
            click.echo(_CLEARED, err=True, nl=False)
            self._is_shown = False
