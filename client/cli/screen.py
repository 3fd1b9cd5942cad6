"""The console of all commands that draw: names and words from elsewhere are shown and never obeyed."""

from __future__ import annotations

from typing import Final

from rich.console import Console

from .stdio import is_terminal
from .text import Cleaning

PIPE_WIDTH: Final = 160
"""A pipe has no width; a log file is read on wide screens."""


def screen(*, stderr: bool = False, pipe_width: int | None = None) -> Console:
    """Make a console. Square brackets in a name are no markup, and a number in it is no highlight."""
    width = pipe_width if pipe_width is not None and not is_terminal() else None
    console = Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    console.push_render_hook(Cleaning())
    return console
