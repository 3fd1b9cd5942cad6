"""The result to look at, readable without colours and in 80 columns, and as a record for programs. Pure."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .check import Check, Verdict, count_of

_MARKS: Final[dict[Verdict, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "bad": ("BAD", "red"),
}
_NAME_CELLS: Final = 12
"""So that all groups have their columns in one place."""


def views(checks: Sequence[Check]) -> Iterator[RenderableType]:
    """Show each group under its name."""
    for group, members in itertools.groupby(checks, key=lambda one: one.group):
        yield Text(group, style="bold")
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(min_width=4, no_wrap=True)
        table.add_column(min_width=_NAME_CELLS, no_wrap=True)
        table.add_column(overflow="fold")
        for one in members:
            table.add_row(*_row(one))
        yield table


def _row(one: Check) -> tuple[Text, Text, Text]:
    words, style = _MARKS[one.verdict]
    told = Text(one.found)
    if one.remedy:
        told.append(f"\n→ {one.remedy}", style="bold" if one.verdict == "bad" else "")
    return Text(words, style=style), Text(one.name), told


def summary(checks: Sequence[Check]) -> Text:
    """Say in one line how it is."""
    counts = Counter(one.verdict for one in checks)
    notes = f", {count_of(counts['note'], 'note')}" if counts["note"] else ""
    if counts["bad"]:
        return Text(f"{count_of(counts['bad'], 'thing')} to mend{notes}.", style="bold red")
    return Text(f"Nothing is broken{notes}.", style="bold green")


def to_dict(checks: Sequence[Check]) -> dict[str, Any]:
    """Return it for JSON."""
    is_well = all(one.verdict != "bad" for one in checks)
    return {"is_well": is_well, "checks": [dataclasses.asdict(one) for one in checks]}
