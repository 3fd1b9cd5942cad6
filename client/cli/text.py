"""The console of all commands that draw, and small pieces of it: numbers as people read them, bars, lines of columns.

Names and words from elsewhere are shown and never obeyed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment
from rich.text import Text

from ...protocol.sanitize import printable, readable
from .stdio import is_terminal

_SPARKS: Final = "▁▂▃▄▅▆▇█"
NOTHING: Final = "-"
BAR_CELLS: Final = 8
"""So that a row of `zmqrt status` fits 80 columns."""
PIPE_WIDTH: Final = 160
"""A pipe has no width; a log file is read on wide screens."""


def screen(*, stderr: bool = False, pipe_width: int | None = None) -> Console:
    """Make a console. Square brackets in a name are no markup, and a number in it is no highlight."""
    width = pipe_width if pipe_width is not None and not is_terminal() else None
    console = Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    console.push_render_hook(Cleaning())
    return console


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: as wide as its cells need, between two bounds; the widest gives way first."""

    title: str
    align: Literal["left", "right"] = "left"
    most: int = 40


def table(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[Text]:
    """Lay out a head and rows, each on one line of at most `width` cells."""
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [
        min(column.most, max([cell_len(column.title), *(row[index].cell_len for row in rows)]))
        for index, column in enumerate(columns)
    ]
    room = width - 2 * (len(columns) - 1)
    while sum(widths) > room and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
    head = [Text(column.title, style="dim") for column in columns]
    return [_line(columns, widths, row, width) for row in (head, *rows)]


def _line(columns: Sequence[Column], widths: Sequence[int], row: Sequence[Text], width: int) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    for index, (column, wide, cell) in enumerate(zip(columns, widths, row, strict=True)):
        fitted = cell.copy()
        fitted.truncate(wide, overflow="ellipsis")
        pad = " " * (wide - fitted.cell_len)
        line.append("  " if index else "")
        line = line + Text(pad) + fitted if column.align == "right" else line + fitted + Text(pad)
    line.truncate(width)
    return line


def clean(line: Text) -> Text:
    """Return a line of which no character moves the cursor: a name may come from anywhere."""
    return line.copy() if line.plain.isprintable() else Text(printable(line.plain), style=line.style)


def spark(values: Sequence[float], width: int) -> Text:
    """Draw the newest values, one cell each; a longer history is drawn by its highest values."""
    if width <= 0 or not values:
        return Text()
    shown = list(values[-width:])
    top = max(shown)
    if top <= 0:
        return Text(_SPARKS[0] * len(shown), style="dim")
    return Text("".join(_SPARKS[round(value / top * (len(_SPARKS) - 1))] for value in shown), style="cyan")


def bar(share: float, cells: int, style: str = "green") -> Text:
    """Draw how much of something is there."""
    full = round(cells * min(1.0, max(0.0, share)))
    return Text.assemble(("█" * full, style), ("░" * (cells - full), "dim"))


def number(value: float | None) -> str:
    """Write a number in at most five characters."""
    if value is None:
        return NOTHING
    for limit, divisor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e15, 1e9, "G")):
        if value < limit:
            scaled = value / divisor
            return f"{scaled:.1f}{unit}" if scaled < 10 and (unit or scaled % 1) else f"{scaled:.0f}{unit}"
    return "many"


def took(seconds: float | None) -> str:
    """Write how long something took."""
    if seconds is None:
        return NOTHING
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else ago(seconds)


def ago(seconds: float) -> str:
    """Write an age, short."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min" if whole < 86_400 else f"{whole // 86_400} d"


def duration(seconds: float) -> str:
    """Write a time the way people say it, to the next smaller unit."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(seconds: float) -> str:
    """Write a short time with three digits that matter."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g} ms" if seconds >= 0.001 else f"{1000 * seconds:.2f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def count_of(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(count: int) -> str:
    """Write bytes."""
    return f"{count / 2**30:.1f}G" if count < 100 * 2**30 else f"{count / 2**30:.0f}G"


class Cleaning(RenderHook):
    """Wraps everything that is printed in `Clean`: no name and no text from elsewhere moves the cursor."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap each of them."""
        return [Clean(renderable) for renderable in renderables]


class Clean:
    """A renderable with marks in place of control characters; rich keeps its own codes apart from the text.

    What a Live shows has to be put into it by hand.
    """

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, and clean every segment."""
        for segment in console.render(self._inner, options):
            yield segment if segment.control else Segment(readable(segment.text), segment.style)
