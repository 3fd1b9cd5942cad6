"""What a fleet does when more is asked of it than it can do: what it still does in time, and what it tells the rest.

docs/benchmarks.md says how to read the figures. The client that never waits is open_loop.py.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
from typing import IO, Final

import click
import msgspec
from open_loop import OpenOrder, OpenOutcome
from processes import start, start_peer, tell
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.table import Table
from rounds import CallOrder, CallOutcome

from zmqrt.protocol import tasks

MODEL: Final = "mock"
_QUIET: Final = ("--log-format", "json", "--log-level", "error")
_DOORS: Final = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
_GOAL_REJECTED_MS: Final = 50.0
_GOAL_GOODPUT: Final = 0.95


class FleetShape(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet that is overloaded: mock engines, whose every step takes the same time."""

    nodes: int
    slots: int
    step_ms: float
    tokens: int
    """Of each answer: so many steps."""

    @property
    def ideal_per_s(self) -> float:
        """Requests per second if nothing but the steps took time."""
        return self.nodes * self.slots * 1000 / (self.step_ms * self.tokens)


class Pressure(msgspec.Struct, frozen=True):
    """So many times the capacity, in all rounds."""

    factor: float
    rounds: list[OpenOutcome]

    def median(self, field: str) -> float:
        """Return the median of a field."""
        values: list[float] = [getattr(outcome, field) for outcome in self.rounds]
        return statistics.median(values)

    def total(self, field: str) -> int:
        """Add a field up."""
        values: list[int] = [getattr(outcome, field) for outcome in self.rounds]
        return sum(values)

    def most(self, field: str) -> float:
        """Return the greatest value of a field."""
        values: list[float] = [getattr(outcome, field) for outcome in self.rounds]
        return max(values)

    def overdue(self, step_ms: float) -> int:
        """Count what was taken in and ended more than a step after its deadline, or not at all."""
        late = sum(late_ms > step_ms for outcome in self.rounds for late_ms in outcome.overdue_ms)
        return late + self.total("unanswered")


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file: where it was measured, and every round."""

    shape: FleetShape
    seconds: float
    deadline_s: float
    return_share: float
    capacities: list[float]
    """Requests per second that the fleet answered when its clients waited, before each round."""
    pressures: list[Pressure]


class Stack:
    """A broker, its nodes, a client that waits for answers and one that does not."""

    def __init__(self, stack: contextlib.ExitStack, shape: FleetShape) -> None:
        self._shape = shape
        _, out = start(stack, "-m", "zmqrt.broker", *_QUIET, *_DOORS)
        where = json.loads(out.readline())["endpoints"]
        mock = ("--engine", "mock", "--served-model-name", MODEL, "--devices", "0", "--slots", str(shape.slots))
        options = ("--engine-opt", f"step_ms={shape.step_ms},eos=never")
        nodes = [
            start(stack, "-m", "zmqrt.worker", *_QUIET, "--broker", where["workers"], *mock, *options)
            for _ in range(shape.nodes)
        ]
        for _, out in nodes:
            out.readline()
        self._broker = where["clients"]
        self._waiting = start_peer(stack, "native_load.py", "client", self._broker)
        self._open = start_peer(stack, "open_loop.py", "client", self._broker)

    def capacity(self, seconds: float) -> float:
        """Return the requests per second that are answered while twice as many wait as there are slots."""
        depth = 2 * self._shape.nodes * self._shape.slots
        order = CallOrder(depth, seconds, url=self._broker, max_tokens=self._shape.tokens)
        outcome = msgspec.json.decode(_ask(self._waiting, order), type=CallOutcome)
        return outcome.answered / outcome.elapsed_s

    def overload(self, rate: float, seconds: float, deadline_s: float, return_share: float, seed: int) -> OpenOutcome:
        """Ask at this rate, whatever becomes of it."""
        order = OpenOrder(
            depth=0,
            seconds=seconds,
            rate=rate,
            deadline_s=deadline_s,
            service=MODEL,
            body=tasks.encode(tasks.Generate(prompt="?" * 100, raw=True, max_tokens=self._shape.tokens)),
            seed=seed,
            return_share=return_share,
            settle_s=min(1.0, seconds / 4),
        )
        return msgspec.json.decode(_ask(self._open, order), type=OpenOutcome)


def _ask(peer: tuple[subprocess.Popen[str], IO[str]], order: msgspec.Struct) -> str:
    process, out = peer
    tell(process, msgspec.json.encode(order).decode())
    if not (line := out.readline()):
        raise click.ClickException("a client ended in the middle of a round; what it wrote stands above")
    return line


def make_table(pressures: list[Pressure], seconds: float, step_ms: float) -> Table:
    """Put medians into a table; what must not be is added up over all rounds."""
    table = Table(title="medians of all rounds; from 'timed out' on sums")
    for name in ("load", "asked/s", "in time/s", "p50 ms", "p99 ms", "rejected", "after ms p50", "p99", "most"):
        table.add_column(name, justify="right")
    for name in ("told s", "back: in", "after: in", "timed out", "overdue", "failed", "lag ms"):
        table.add_column(name, justify="right")
    for pressure in pressures:
        table.add_row(
            f"{pressure.factor:g}x",
            f"{pressure.total('asked') / len(pressure.rounds) / seconds:,.0f}",
            f"{pressure.median('goodput'):,.0f}",
            f"{pressure.median('p50_us') / 1000:,.0f}",
            f"{pressure.median('p99_us') / 1000:,.0f}",
            share(pressure.total("refused"), pressure.total("asked") + _came_back(pressure)),
            f"{pressure.median('rejected_p50_ms'):.1f}",
            f"{pressure.median('rejected_p99_ms'):.1f}",
            f"{pressure.most('rejected_most_ms'):.1f}",
            f"{pressure.median('told_p50_s'):.2f}",
            share(pressure.total("returned_in"), pressure.total("returned")),
            share(pressure.total("returned_after_in"), pressure.total("returned_after")),
            str(pressure.total("timed_out")),
            str(pressure.overdue(step_ms)),
            str(pressure.total("failed")),
            f"{pressure.most('lag_p99_ms'):.1f}",
        )
    return table


def _came_back(pressure: Pressure) -> int:
    return pressure.total("returned") + pressure.total("returned_after")


def share(part: int, whole: int) -> str:
    """Say it in percent; a dash if there is nothing to have a part in."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def make_verdict(pressures: list[Pressure], step_ms: float) -> list[str]:
    """Say of each goal whether it was met."""
    said: list[str] = []
    base = next((pressure for pressure in pressures if pressure.factor == 1), None)
    for pressure in pressures:
        load = f"{pressure.factor:g}x"
        if base is not None and pressure.factor > 1:
            found = pressure.median("goodput") / base.median("goodput")
            said.append(f"{_is_met(found >= _GOAL_GOODPUT)} {load}: goodput {found:.2f} of that at 1x")
        if pressure.total("refused"):
            most_ms = pressure.most("rejected_most_ms")
            said.append(f"{_is_met(most_ms <= _GOAL_REJECTED_MS)} {load}: every rejection within {most_ms:.0f} ms")
        overdue = pressure.overdue(step_ms)
        said.append(f"{_is_met(not overdue)} {load}: {overdue} taken in, and over a step late or without an end")
    return said


def _is_met(verdict: bool) -> str:  # noqa: FBT001 - a word for it
    return "met:   " if verdict else "missed:"


@click.command(epilog="Example: 'bench_overload.py --rounds 1 --seconds 2 --factor 1 --factor 4' for a quick look.")
@click.option(
    "--factor", "factors", multiple=True, default=(0.5, 1.0, 2.0, 4.0), show_default=True, help="Times capacity."
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds; each has all factors.")
@click.option("--seconds", default=10.0, show_default=True, help="Length of one measurement.")
@click.option("--deadline", "deadline_s", default=1.0, show_default=True, help="Of each request, in seconds.")
@click.option("--return-share", default=0.2, show_default=True, help="Of those told to come back, who do, once.")
@click.option("--nodes", default=2, show_default=True, help="Nodes of the fleet, each with one device.")
@click.option("--slots", default=16, show_default=True, help="Requests beside each other on a device.")
@click.option("--step-ms", default=10.0, show_default=True, help="Length of a step of an engine.")
@click.option("--tokens", default=8, show_default=True, help="Of each answer: so many steps.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(  # noqa: PLR0917 - so click calls it
    factors: tuple[float, ...],
    rounds: int,
    seconds: float,
    deadline_s: float,
    return_share: float,
    nodes: int,
    slots: int,
    step_ms: float,
    tokens: int,
    save: bool,  # noqa: FBT001
) -> None:
    """Measure what a fleet does when more is asked of it than it can do.

    Requests come by a seeded Poisson clock at some times the capacity that was measured just before, and none waits for
    the answer to another one. Each has a deadline. Goodput is answers per second that came in time. Those that are
    rejected are told when to come back; a share of them does, once and exactly then, beside all the others.

    Columns: 'after ms' from the sending of a request to its rejection; 'told' in how long to come back (median); 'back:
    in' who came back when told and was taken in, while the overload lasted, 'after: in' once it was over; 'timed out'
    what was taken in and ended at its deadline without an answer; 'overdue' what was taken in and ended, in whatever
    way, more than a step after its deadline, or never; 'lag' how late requests were sent: above some milliseconds the
    client is what is measured. Latencies are those of first tries, from when they were due.
    """
    shape = FleetShape(nodes=nodes, slots=slots, step_ms=step_ms, tokens=tokens)
    pressures = [Pressure(factor, []) for factor in factors]
    capacities: list[float] = []
    with contextlib.ExitStack() as stack:
        fleet = Stack(stack, shape)
        fleet.capacity(min(1.0, seconds / 2))
        for number in range(rounds):
            capacities.append(fleet.capacity(min(3.0, seconds)))
            click.echo(f"round {number + 1} of {rounds}: capacity {capacities[-1]:.0f} requests/s", err=True)
            for pressure in pressures:
                rate = pressure.factor * capacities[-1]
                pressure.rounds.append(fleet.overload(rate, seconds, deadline_s, return_share, number))
    Console(width=max(160, Console().width)).print(make_table(pressures, seconds, step_ms))
    click.echo(
        f"capacity {statistics.median(capacities):.0f} requests/s; {shape.ideal_per_s:.0f} if only steps took time"
    )
    for line in make_verdict(pressures, step_ms):
        click.echo(line)
    report = Report(
        **circumstances(),
        shape=shape,
        seconds=seconds,
        deadline_s=deadline_s,
        return_share=return_share,
        capacities=capacities,
        pressures=pressures,
    )
    path = write(report, "overload", is_kept=save)
    click.echo(f"load average {report.load_average[0]:.1f}; written to {path}")


if __name__ == "__main__":
    main()
