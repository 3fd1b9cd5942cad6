"""What monitors cost a broker: its CPU time for each request with three of them and with none, in pairs.

docs/benchmarks.md says how to read the figures. The load is in zrt_peers.py, the fleet that is watched in
idle_nodes.py; the monitors are `zmqrt top --json`, which ask as the picture does.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from typing import IO, Final

import click
import msgspec
import psutil
from idle_nodes import DEVICES, NODES
from processes import BROKER, Ready, start, start_peer, tell
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.table import Table
from rounds import Order, Outcome

_WARM_UP_S: Final = 0.5


class Round(msgspec.Struct, frozen=True):
    """One round: what the client saw, and what the broker spent."""

    outcome: Outcome
    broker_cpu_s: float

    @property
    def us_per_request(self) -> float:
        """CPU time of the broker for each request."""
        return 1e6 * self.broker_cpu_s / self.outcome.answered


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file: where it was measured, and every round."""

    nodes: int
    devices: int
    median_ratio: float
    without: list[Round]
    watched: list[Round]


class Bench:
    """A broker under a steady load, with a fleet to be watched."""

    def __init__(self, stack: contextlib.ExitStack, monitors: int) -> None:
        self._monitors = monitors
        process, out = start(stack, *BROKER)
        endpoints = msgspec.json.decode(out.readline(), type=Ready).endpoints
        self._broker = psutil.Process(process.pid)
        self._clients = endpoints["clients"]
        for program in ("zrt_peers.py", "idle_nodes.py"):
            start_peer(stack, program, "worker", endpoints["workers"])
        self._client, self._said = start_peer(stack, "zrt_peers.py", "client", self._clients)

    def run(self, seconds: float, depth: int, *, is_watched: bool) -> Round:
        """Run one round, with monitors or without."""
        with contextlib.ExitStack() as stack:
            for _ in range(self._monitors if is_watched else 0):
                _watch(stack, self._clients)
            self._load(_WARM_UP_S, depth)
            before = self._cpu_s()
            outcome = self._load(seconds, depth)
            return Round(outcome, self._cpu_s() - before)

    def _cpu_s(self) -> float:
        spent = self._broker.cpu_times()
        return float(spent.user + spent.system)

    def _load(self, seconds: float, depth: int) -> Outcome:
        tell(self._client, msgspec.json.encode(Order(depth, seconds)).decode())
        if not (line := self._said.readline()):
            raise click.ClickException("the client ended in the middle of a round; what it wrote stands above")
        return msgspec.json.decode(line, type=Outcome)


def _watch(stack: contextlib.ExitStack, endpoint: str) -> None:
    """Start a monitor, wait until it has seen the fleet, and read on, so that it goes on."""
    _, out = start(stack, "-m", "zmqrt.client.cli", "top", "--json", "--broker", endpoint)
    if not out.readline():
        raise click.ClickException("a monitor did not start; what it wrote stands above")
    threading.Thread(target=_read_all, args=(out,), daemon=True).start()


def _read_all(out: IO[str]) -> None:
    with contextlib.suppress(ValueError):  # closed at the end of the round
        for _ in out:
            pass


def ratios(watched: list[Round], without: list[Round]) -> list[float]:
    """Return the CPU time a request with monitors over that without, pair by pair."""
    return [ours.us_per_request / base.us_per_request for ours, base in zip(watched, without, strict=True)]


def make_table(results: dict[str, list[Round]]) -> Table:
    """Put medians into a table; lowest and highest in brackets."""
    table = Table(title="medians of all rounds, (lowest to highest)")
    for name in ("monitors", "broker CPU us a request", "requests/s", "p99 us"):
        table.add_column(name, justify="left" if name == "monitors" else "right", no_wrap=True)
    for kind, rounds in results.items():
        spent = [one.us_per_request for one in rounds]
        table.add_row(
            kind,
            f"{statistics.median(spent):.2f} ({min(spent):.2f} to {max(spent):.2f})",
            f"{statistics.median(one.outcome.answered / one.outcome.elapsed_s for one in rounds):,.0f}",
            f"{statistics.median(one.outcome.p99_us for one in rounds):,.0f}",
        )
    return table


@click.command()
@click.option("--pairs", default=10, show_default=True, type=click.IntRange(1), help="Pairs of rounds.")
@click.option("--seconds", default=3.0, show_default=True, help="Length of one round.")
@click.option("--depth", default=32, show_default=True, help="Requests in flight.")
@click.option("--monitors", default=3, show_default=True, type=click.IntRange(0), help="Monitors in watched rounds.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(pairs: int, seconds: float, depth: int, monitors: int, save: bool) -> None:  # noqa: FBT001 - so click calls it
    """Measure what monitors cost a broker for each request that it serves.

    Which of a pair comes first changes with each pair. With `--monitors 0` both are the same, and chance is what
    differs.
    """
    results: dict[str, list[Round]] = {"none": [], str(monitors): []} if monitors else {"none": [], "none again": []}
    without, watched = results.values()
    with contextlib.ExitStack() as stack:
        bench = Bench(stack, monitors)
        for number in range(pairs):
            click.echo(f"pair {number + 1} of {pairs}", err=True)
            for is_watched in (False, True) if number % 2 else (True, False):
                (watched if is_watched else without).append(bench.run(seconds, depth, is_watched=is_watched))
    found = ratios(watched, without)
    Console(width=max(100, Console().width)).print(make_table(results))
    report = Report(
        **circumstances(),
        nodes=NODES,
        devices=NODES * DEVICES,
        median_ratio=round(statistics.median(found), 4),
        without=without,
        watched=watched,
    )
    path = write(report, "monitors", is_kept=save)
    spread = f"{min(found):.3f} to {max(found):.3f}"
    click.echo(f"watched / not watched, pair by pair: median {statistics.median(found):.3f} ({spread})")
    click.echo(f"load average {report.load_average[0]:.1f}; written to {path}")
    if any(one.outcome.refused for one in (*without, *watched)):
        raise click.ClickException("requests were refused: these figures are worth nothing")


if __name__ == "__main__":
    main()
