"""Requests per second, latency and CPU of the broker, beside libzmq's own `zmq.proxy` in the same run.

docs/benchmarks.md says how to read the figures. The load is in zrt_peers.py and plain_peers.py:
a process for each peer.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Generator

import click
import msgspec
import psutil
from processes import BROKER, HERE, Ready, start, start_peer, tell
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rounds import Order, Outcome

_WARM_UP_S = 0.3


class Sample(msgspec.Struct, frozen=True):
    """One side of one pair. CPU is that of the process in the middle; what is not its main thread's is libzmq's I/O."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    main_thread_us: float
    refused: int


class Depth(msgspec.Struct, frozen=True):
    """Everything measured at one depth, pair by pair."""

    in_flight: int
    broker: list[Sample]
    proxy: list[Sample]

    @property
    def ratios(self) -> list[float]:
        """Return requests/s of the broker over those of the proxy, pair by pair."""
        return [
            ours.requests_per_s / theirs.requests_per_s for ours, theirs in zip(self.broker, self.proxy, strict=True)
        ]


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file: where it was measured, and every sample."""

    seconds: float
    median_ratios: dict[str, float]
    depths: list[Depth]


class Route:
    """Three processes: a client, what stands in the middle, a worker."""

    def __init__(self, stack: contextlib.ExitStack, middle: list[str], peers: str) -> None:
        self._middle, out = start(stack, *middle)
        endpoints = msgspec.json.decode(out.readline(), type=Ready).endpoints
        start_peer(stack, peers, "worker", endpoints["workers"])
        self._client, self._said = start_peer(stack, peers, "client", endpoints["clients"])

    def measure(self, depth: int, seconds: float) -> Sample:
        """Run a short round to warm up and one that counts."""
        self._run(Order(depth, _WARM_UP_S))
        all_before, main_before = self._cpu_s()
        outcome = self._run(Order(depth, seconds))
        all_after, main_after = self._cpu_s()
        per_request_us = 1e6 / max(1, outcome.answered)
        return Sample(
            requests_per_s=outcome.answered / outcome.elapsed_s,
            p50_us=outcome.p50_us,
            p99_us=outcome.p99_us,
            cpu_us=(all_after - all_before) * per_request_us,
            main_thread_us=(main_after - main_before) * per_request_us,
            refused=outcome.refused,
        )

    def _run(self, order: Order) -> Outcome:
        tell(self._client, msgspec.json.encode(order).decode())
        line = self._said.readline()
        if not line:
            raise click.ClickException("the client ended in the middle of a round; what it wrote stands above")
        return msgspec.json.decode(line, type=Outcome)

    def _cpu_s(self) -> tuple[float, float]:
        """Return the CPU seconds so far of (all threads, the main thread)."""
        process = psutil.Process(self._middle.pid)
        times = process.cpu_times()
        main = next((one for one in process.threads() if one.id == self._middle.pid), None)
        return times.user + times.system, main.user_time + main.system_time if main else 0.0


def compare(depths: list[int], pairs: int, seconds: float) -> list[Depth]:
    """Measure broker, proxy, broker, proxy … at each depth, so that a busy machine disturbs both alike."""
    with contextlib.ExitStack() as stack:
        broker = Route(stack, BROKER, "zrt_peers.py")
        proxy = Route(stack, [str(HERE / "plain_peers.py"), "proxy"], "plain_peers.py")
        step = stack.enter_context(_progress(len(depths) * pairs * 2))
        results: list[Depth] = []
        for depth in depths:
            result = Depth(depth, [], [])
            for number in range(pairs):
                for name, path, samples in (("broker", broker, result.broker), ("zmq.proxy", proxy, result.proxy)):
                    with step(f"{depth} in flight, pair {number + 1} of {pairs}: {name}"):
                        samples.append(path.measure(depth, seconds))
            results.append(result)
        return results


@contextlib.contextmanager
def _progress(total: int) -> Generator[_Step]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Step(bar, total)


class _Step:
    """Shows what is being measured, and counts it when it is done."""

    def __init__(self, bar: Progress, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("starting", total=total)

    @contextlib.contextmanager
    def __call__(self, what: str) -> Generator[None]:
        self._bar.update(self._task, description=what)
        yield
        self._bar.advance(self._task)


def make_table(results: list[Depth]) -> Table:
    """Put the medians of all depths into one table; lowest and highest under the rate and its ratio."""
    table = Table(title="100-byte bodies; medians of all pairs, (lowest to highest)")
    for name in ("in flight", "", "requests/s", "p50 us", "p99 us", "CPU us/req", "main thread"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for result in results:
        for name, samples in (("broker", result.broker), ("zmq.proxy", result.proxy)):
            table.add_row(
                str(result.in_flight),
                name,
                _spread([one.requests_per_s for one in samples], "{:,.0f}"),
                f"{statistics.median(one.p50_us for one in samples):,.0f}",
                f"{statistics.median(one.p99_us for one in samples):,.0f}",
                f"{statistics.median(one.cpu_us for one in samples):.1f}",
                f"{statistics.median(one.main_thread_us for one in samples):.1f}",
            )
        ratio = f"[bold]{_spread(result.ratios, '{:.2f}')}[/bold]"
        table.add_row("", "broker / proxy", ratio, *_median_ratios(result), end_section=True)
    return table


def _spread(values: list[float], form: str) -> str:
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return f"{middle}\n({low} to {high})"


def _median_ratios(result: Depth) -> list[str]:
    pairs = list(zip(result.broker, result.proxy, strict=True))
    return [
        f"{statistics.median(getattr(ours, name) / max(getattr(theirs, name), 0.01) for ours, theirs in pairs):.2f}"
        for name in ("p50_us", "p99_us", "cpu_us", "main_thread_us")
    ]


def make_report(results: list[Depth], seconds: float) -> Report:
    """Say what was measured, and where."""
    return Report(
        **circumstances(),
        seconds=seconds,
        median_ratios={str(one.in_flight): round(statistics.median(one.ratios), 3) for one in results},
        depths=results,
    )


@click.command(
    epilog="Examples: 'bench_roundtrip.py --seconds 0.5' for a quick look, '--pairs 11 --save' for figures to publish."
)
@click.option("--seconds", default=2.0, show_default=True, help="Length of one measurement.")
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="Measurements of each, in turn.")
@click.option("--depth", "depths", multiple=True, default=(1, 32, 512), show_default=True, help="Requests in flight.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(seconds: float, pairs: int, depths: tuple[int, ...], save: bool) -> None:  # noqa: FBT001 - so click calls it
    """Measure how fast requests go through the broker, beside libzmq's own proxy.

    A client keeps some requests in flight, a worker answers each at once, and the broker stands between them, every one
    in a process of its own. The same is done with zmq.proxy (C, no queues, no routing, no leases) in the middle, in
    turn: broker, proxy, broker, proxy. Trust the ratios within a pair; requests/s depend on the machine and on what
    else it does.

    In flight 1 shows latency, 512 what one broker can carry. CPU is that of the process in the middle: all its threads,
    and its main thread, which for the broker is the Python.
    """
    results = compare(list(depths), pairs, seconds)
    Console(width=max(100, Console().width)).print(make_table(results))
    refused = sum(one.refused for result in results for one in (*result.broker, *result.proxy))
    if refused:
        click.echo(f"{refused} requests were refused: these figures are worth nothing", err=True)
    path = write(make_report(results, seconds), "roundtrip", is_kept=save)
    click.echo(f"written to {path}")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
