"""`zmqrt doctor`: checks this machine and the fleet, and says what to do where something is not well."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import click
from rich.table import Table
from rich.text import Text

from ...protocol.errors import EXIT_FAILED, EXIT_OK
from ...protocol.sanitize import printable
from ...protocol.settings import is_named, options
from ..config import ClientSettings
from .doctor import Finding, Verdict, check_brokers, check_keys, check_ports, check_software, check_worker
from .stdio import data
from .text import count_of, screen

_PIPE_WIDTH: Final = 120
_EPILOG: Final = """\b
Each line says ok, note or BAD; below those that are not ok stands what to do.
  note  works, but you may want to know
  BAD   does not work, or is unsafe; the exit code is 1 then, else 0

\b
  zmqrt doctor                                     before the first start
  zmqrt doctor --broker tcp://broker-1:7555        can this machine reach it?
  zmqrt doctor --keys fleet-keys --no-worker       keys, on a client machine
  zmqrt doctor --json | jq '.checks[] | select(.verdict != "ok")'

Several brokers are asked one by one. A broker that nobody named (by flag, variable or file) may be absent.
"""

_MARKS: Final[dict[Verdict, tuple[str, str]]] = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "bad": ("BAD", "red"),
}
_NAME_CELLS: Final = 12
"""So that all groups have their columns in one place."""


@click.command(help="Check this machine and the fleet; say what to do where something is not well.", epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one line of JSON.")
@click.option("--no-worker", is_flag=True, help="Leave out GPUs, torch and models; that part takes some seconds.")
@click.pass_context
@options(ClientSettings)
def command(settings: ClientSettings, context: click.Context, as_json: bool, no_worker: bool) -> None:
    """Run every check, and show its findings as soon as they are known."""
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("looking at what is installed", lambda: check_software(has_keys=settings.keys is not None)),
        ("knocking at ports", check_ports),
        ("reading keys", lambda: check_keys(settings.keys)),
        (f"asking {', '.join(settings.broker)}", lambda: check_brokers(settings, are_named=is_named("broker"))),
    ]
    if not no_worker:
        checks.append(("looking at GPUs, torch and models (this takes some seconds)", check_worker))
    console, errors = screen(pipe_width=_PIPE_WIDTH), screen(stderr=True)
    findings: list[Finding] = []
    for doing, check in checks:
        status = errors.status(Text(printable(f"{doing} …"))) if errors.is_terminal else contextlib.nullcontext()
        with status:
            found = list(check())
        findings += found
        if not as_json:
            console.print(*tables(found))
    is_well = all(finding.verdict != "bad" for finding in findings)
    if as_json:
        data({"is_well": is_well, "checks": [dataclasses.asdict(finding) for finding in findings]})
    else:
        console.print(summary(findings))
    context.exit(EXIT_OK if is_well else EXIT_FAILED)


def tables(findings: Iterable[Finding]) -> Iterator[Text | Table]:
    """Show each group under its name, in 80 columns and without colours too."""
    for group, members in itertools.groupby(findings, key=lambda finding: finding.group):
        yield Text(group, style="bold")
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(min_width=4, no_wrap=True)
        table.add_column(min_width=_NAME_CELLS, no_wrap=True)
        table.add_column(overflow="fold")
        for finding in members:
            mark, style = _MARKS[finding.verdict]
            words = Text(finding.found)
            if finding.remedy:
                words.append(f"\n→ {finding.remedy}", style="bold" if finding.verdict == "bad" else "")
            table.add_row(Text(mark, style=style), Text(finding.name), words)
        yield table


def summary(findings: Iterable[Finding]) -> Text:
    """Say in one line how it is."""
    counts = Counter(finding.verdict for finding in findings)
    notes = f", {count_of(counts['note'], 'note')}" if counts["note"] else ""
    if counts["bad"]:
        return Text(f"{count_of(counts['bad'], 'thing')} to mend{notes}.", style="bold red")
    return Text(f"Nothing is broken{notes}.", style="bold green")
