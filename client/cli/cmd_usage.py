"""`zmqrt usage`: what each tenant has had, from the usage file of bridges on this machine."""

from __future__ import annotations

import csv
import datetime as dt
import sys
import time
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from ...protocol.sanitize import printable
from ...protocol.usage_file import GROUPS, UsageRow, day_of, month_of, read_usage
from .stdio import data
from .text import NOTHING, screen

_NUMBERS = tuple(name for name in UsageRow._fields if name not in GROUPS)


def _day(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    """Read a day, or a month, which means its first and last day."""
    try:
        if given is not None:
            whole = given if len(given) != len("2026-11") else f"{given}-01"
            if dt.date.fromisoformat(whole).isoformat() != whole:  # other spellings compare otherwise
                raise ValueError
    except ValueError:
        raise click.BadParameter("expected a day such as 2026-11-30, or a month such as 2026-11") from None
    return given


@click.command(help="Show what each tenant has had, from the --usage-file of a bridge.")
@click.option(
    "--file",
    "path",
    required=True,
    envvar="ZMQRT_USAGE_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The bridge's --usage-file; else ZMQRT_USAGE_FILE.",
)
@click.option("--by", default="tenant,model", show_default=True, metavar="WORD[,WORD]", help=f"{', '.join(GROUPS)}.")
@click.option("--tenant", metavar="TENANT", help="Of this one alone.")
@click.option("--since", metavar="DAY", callback=_day, help="From this day or month on [default: this month].")
@click.option("--until", metavar="DAY", callback=_day, help="Up to this day or month.")
@click.option("--json", "form", flag_value="json", help="Print a line of JSON for each row.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV.")
def command(path: Path, by: str, tenant: str | None, since: str | None, until: str | None, form: str | None) -> None:
    """Read the file; bridges may write it meanwhile."""
    groups = [word.strip() for word in by.split(",")]
    if not set(groups) <= set(GROUPS):
        raise click.BadParameter(f"expected some of {', '.join(GROUPS)}", param_hint="--by")
    now = time.time()
    first, last = since or month_of(now), until or day_of(now)
    rows = read_usage(
        path, groups, since=first, until=f"{last}-99" if len(last) < len("2026-11-30") else last, tenant=tenant
    )
    if form == "json":
        for row in rows:
            data({name: getattr(row, name) for name in (*groups, *_NUMBERS)})
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([*groups, *_NUMBERS])
        writer.writerows([[_harmless(getattr(row, name)) for name in (*groups, *_NUMBERS)] for row in rows])
    else:
        screen().print(_table(rows, groups))


def _harmless(value: object) -> object:
    """Let no name of somebody else begin a formula where a spreadsheet reads it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _table(rows: list[UsageRow], groups: list[str]) -> Table:
    table = Table(*groups, box=None, pad_edge=False)
    for name in _NUMBERS:
        table.add_column(name.replace("_tokens", ""), justify="right")
    for row in rows:
        words = (Text(printable(str(getattr(row, name))) or NOTHING) for name in groups)
        table.add_row(*words, *(f"{getattr(row, name):,}" for name in _NUMBERS))
    return table
