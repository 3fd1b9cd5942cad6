"""What a client that does not read costs the others: their p99 latency with and without it, in rounds that take turns.

docs/benchmarks.md says how to read the figures. The load is in zrt_peers.py, the slow client in slow_peers.py.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Final

import click
import msgspec
from processes import BROKER, Ready, start, start_peer, tell
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.table import Table
from rounds import Order, Outcome

from zmqrt.client import Client

KINDS: Final = ("none", "reads", "stuck", "none again")
"""What the slow client does in each round of a set; the last is the first once more, and shows what chance does."""
_WARM_UP_S: Final = 0.5


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file: where it was measured, and every round."""

    given_up: int
    median_p99_ratios: dict[str, float]
    rounds: dict[str, list[Outcome]]


def measure(rounds: int, seconds: float, depth: int) -> tuple[dict[str, list[Outcome]], int]:
    """Run every kind in turn, again and again; return what came of it, and how many readers the broker gave up."""
    results: dict[str, list[Outcome]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        _, out = start(stack, *BROKER)
        endpoints = msgspec.json.decode(out.readline(), type=Ready).endpoints
        for program in ("zrt_peers.py", "slow_peers.py"):
            start_peer(stack, program, "worker", endpoints["workers"])
        client, said = start_peer(stack, "zrt_peers.py", "client", endpoints["clients"])
        slow, _ = start_peer(stack, "slow_peers.py", "client", endpoints["clients"])

        def run(length_s: float) -> Outcome:
            tell(client, msgspec.json.encode(Order(depth, length_s)).decode())
            if not (line := said.readline()):
                raise click.ClickException("the client ended in the middle of a round; what it wrote stands above")
            return msgspec.json.decode(line, type=Outcome)

        for number in range(rounds):
            for kind in KINDS:
                click.echo(f"round {number + 1} of {rounds}: {kind}", err=True)
                tell(slow, kind.partition(" ")[0])
                run(_WARM_UP_S)
                results[kind].append(run(seconds))
        with Client(endpoints["clients"]) as asked:
            given_up = asked.status().counters["slow_readers"]
    return results, given_up


def ratios(results: dict[str, list[Outcome]], kind: str) -> list[float]:
    """Return the p99 of a kind over that of the undisturbed round of its own set."""
    return [ours.p99_us / base.p99_us for ours, base in zip(results[kind], results["none"], strict=True)]


def make_table(results: dict[str, list[Outcome]]) -> Table:
    """Put medians into a table; lowest and highest in brackets."""
    table = Table(title="medians of all rounds, (lowest to highest)")
    for name in ("one more client", "p50 us", "p99 us", "requests/s", "p99 / none, pair by pair"):
        table.add_column(name, justify="left" if name == "one more client" else "right", no_wrap=True)
    for kind, outcomes in results.items():
        found = ratios(results, kind)
        table.add_row(
            kind,
            f"{statistics.median(one.p50_us for one in outcomes):,.0f}",
            f"{statistics.median(one.p99_us for one in outcomes):,.0f}",
            f"{statistics.median(one.answered / one.elapsed_s for one in outcomes):,.0f}",
            "" if kind == "none" else f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})",
        )
    return table


@click.command()
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1), help="Sets of rounds.")
@click.option("--seconds", default=1.0, show_default=True, help="Length of one round.")
@click.option("--depth", default=32, show_default=True, help="Requests the others keep in flight.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(rounds: int, seconds: float, depth: int, save: bool) -> None:  # noqa: FBT001 - so click calls it
    """Measure what a client that does not read its stream does to the latency of the others.

    Four rounds make a set: nobody else is there; one more client reads a stream of eight megabytes a second; it asks
    for that stream and does not read it; nobody again. Trust the ratios within a set, and compare them with that of the
    last round, which differs from the first by chance alone.
    """
    results, given_up = measure(rounds, seconds, depth)
    Console(width=max(100, Console().width)).print(make_table(results))
    refused = sum(one.refused for outcomes in results.values() for one in outcomes)
    report = Report(
        **circumstances(),
        given_up=given_up,
        median_p99_ratios={kind: round(statistics.median(ratios(results, kind)), 3) for kind in KINDS},
        rounds=results,
    )
    path = write(report, "slow-reader", is_kept=save)
    click.echo(f"{given_up} readers given up in {rounds} rounds; load average {report.load_average[0]:.1f}")
    click.echo(f"written to {path}")
    if refused:
        raise click.ClickException(f"{refused} requests were refused: these figures are worth nothing")


if __name__ == "__main__":
    main()
