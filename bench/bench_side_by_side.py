"""How throughput adds up when one host runs several brokers, or several bridges: `1, 2, 4` of them, in turn.

Two nodes with the mock engine (steps of no time) dial every broker. Natively a client process asks each broker; over
HTTP one asks each bridge. All layouts stand all the time and are loaded in turn, with as many requests in flight in
all. CPU time is that of all processes of a layout, without those that ask. Throughput adds up as long as there are
cores: a broker and a bridge keep one busy each, and so does each process that asks.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
from typing import IO, Final

import click
import msgspec
from bench_path import Part
from processes import HERE, start, tell, wait_until_up
from reports import Circumstances, circumstances, progress, write
from rich.console import Console
from rich.table import Table
from rounds import CallOrder, CallOutcome

NODES: Final = 2
_QUIET: Final = ("--log-format", "json", "--log-level", "warning")
_DOORS: Final = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
_WARM_UP_S: Final = 0.3


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one layout."""

    per_s: float
    """Requests, over all doors."""
    p50_ms: float
    """The median of the doors' medians."""
    cpu_us: dict[str, float]
    """For each request, by role."""
    failed: int


class Row(msgspec.Struct, frozen=True):
    """All rounds of one layout."""

    brokers: int
    bridges: int
    """None means that requests came natively."""
    rounds: list[Figure]

    @property
    def name(self) -> str:
        """Say it: `2 brokers, 2 bridges`."""
        return f"{_many(self.brokers, 'broker')}, {_many(self.bridges, 'bridge') if self.bridges else 'native'}"


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file."""

    seconds: float
    depth: int
    rows: list[Row]


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'s' if count > 1 else ''}"


class Layout:
    """Brokers, their nodes and bridges, and a process that asks at each door."""

    def __init__(self, stack: contextlib.ExitStack, brokers: int, bridges: int) -> None:
        self.row = Row(brokers, bridges, [])
        self._parts: list[Part] = []
        where = [self._start(stack, "broker", *_DOORS) for _ in range(brokers)]
        doors = ",".join(one["workers"] for one in where)
        mock = ("--engine", "mock", "--devices", "0", "--slots", "512", "--node-max-capacity", "1000")
        for _ in range(NODES):
            self._start(stack, "worker", "--broker", doors, *mock, "--engine-opt", "step_ms=0,eos=never")
        self._urls = [one["clients"] for one in where]
        if bridges:
            # Each bridge knows all brokers, and begins with another one.
            turns = [self._urls[number % brokers :] + self._urls[: number % brokers] for number in range(bridges)]
            homes = [
                self._start(stack, "bridge_http", "--broker", ",".join(turn), "--port", "0")["http"] for turn in turns
            ]
            for home in homes:
                wait_until_up(f"{home}/readyz")
            self._urls = [f"{home}/infer" for home in homes]
        program = "http_load.py" if bridges else "native_load.py"
        self._askers = [start(stack, str(HERE / program)) for _ in self._urls]
        for _, said in self._askers:
            said.readline()

    def _start(self, stack: contextlib.ExitStack, role: str, *words: str) -> dict[str, str]:
        process, said = start(stack, "-m", f"zmqrt.{role}", *_QUIET, *words)
        self._parts.append(Part(role, process.pid))
        where: dict[str, str] = json.loads(said.readline())["endpoints"]
        return where

    def measure(self, depth: int, seconds: float) -> Figure:
        """Warm up, then run a round that counts."""
        self._ask(depth, _WARM_UP_S)
        before = [part.cpu_s() for part in self._parts]
        outcomes = self._ask(depth, seconds)
        spent = [part.cpu_s() - was for part, was in zip(self._parts, before, strict=True)]
        answered = max(1, sum(outcome.answered for outcome in outcomes))
        cpu_us: dict[str, float] = {}
        for part, cpu_s in zip(self._parts, spent, strict=True):
            cpu_us[part.name] = cpu_us.get(part.name, 0.0) + 1e6 * cpu_s / answered
        return Figure(
            per_s=sum(outcome.answered / outcome.elapsed_s for outcome in outcomes),
            p50_ms=statistics.median(outcome.p50_us for outcome in outcomes) / 1000,
            cpu_us=cpu_us,
            failed=sum(outcome.refused + outcome.stalled for outcome in outcomes),
        )

    def _ask(self, depth: int, seconds: float) -> list[CallOutcome]:
        """Load all doors at the same time."""
        for (process, _), url in zip(self._askers, self._urls, strict=True):
            order = CallOrder(max(1, depth // len(self._urls)), seconds, url=url, max_tokens=1)
            tell(process, msgspec.json.encode(order).decode())
        return [_outcome(asker) for asker in self._askers]


def _outcome(asker: tuple[subprocess.Popen[str], IO[str]]) -> CallOutcome:
    if not (line := asker[1].readline()):
        raise click.ClickException("a client ended in the middle of a round; what it wrote stands above")
    return msgspec.json.decode(line, type=CallOutcome)


def make_table(rows: list[Row]) -> Table:
    """Put the medians into a table; each beside the layout with one of each that is asked the same way."""
    table = Table(title="medians of all rounds (lowest to highest)")
    for name in ("layout", "requests/s", "of one's", "p50 ms", "CPU us", "of which"):
        table.add_column(name, justify="left" if name in ("layout", "of which") else "right")
    for row in rows:
        alone = next(one for one in rows if one.brokers == 1 and one.bridges == min(row.bridges, 1))
        rates = [figure.per_s for figure in row.rounds]
        ratio = statistics.median(mine / its.per_s for mine, its in zip(rates, alone.rounds, strict=True))
        parts = {role: statistics.median(one.cpu_us[role] for one in row.rounds) for role in row.rounds[0].cpu_us}
        failed = sum(figure.failed for figure in row.rounds)
        table.add_row(
            row.name + (f" [bold]({failed} failed)[/bold]" if failed else ""),
            f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
            f"{ratio:.2f}",
            f"{statistics.median(figure.p50_ms for figure in row.rounds):,.1f}",
            f"{sum(parts.values()):,.0f}",
            ", ".join(f"{role} {value:,.0f}" for role, value in parts.items()),
        )
    return table


@click.command(help=__doc__)
@click.option("--counts", default="1,2,4", show_default=True, help="How many of each; 1 is always there.")
@click.option("--depth", default=64, show_default=True, type=click.IntRange(1), help="Requests in flight, in all.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each, in turn.")
@click.option("--seconds", default=1.5, show_default=True, help="Length of a round.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(*, counts: str, depth: int, rounds: int, seconds: float, save: bool) -> None:
    """Run the comparison."""
    try:
        many = sorted({1, *(int(count) for count in counts.split(","))})
    except ValueError:
        raise click.BadParameter(f"{counts}: numbers with commas between them, such as 1,2,4") from None
    if many[0] < 1:
        raise click.BadParameter("at least one of each", param_hint="--counts")
    shapes = [
        *((count, 0) for count in many),
        *((1, count) for count in many),
        *((count, count) for count in many if count > 1),
    ]
    with contextlib.ExitStack() as stack:
        with progress(len(shapes) + rounds * len(shapes)) as step:
            layouts: list[Layout] = []
            for brokers, bridges in shapes:
                with step(f"starting {brokers} and {bridges}"):
                    layouts.append(Layout(stack, brokers, bridges))
            for number, layout in itertools.product(range(rounds), layouts):
                with step(f"round {number + 1} of {rounds}: {layout.row.name}"):
                    layout.row.rounds.append(layout.measure(depth, seconds))
        rows = [layout.row for layout in layouts]
    Console(width=max(130, Console().width)).print(make_table(rows))
    report = Report(**circumstances("starlette", "uvloop"), seconds=seconds, depth=depth, rows=rows)
    click.echo(f"load average {report.load_average[0]:.1f}; written to {write(report, 'side-by-side', is_kept=save)}")


if __name__ == "__main__":
    main()
