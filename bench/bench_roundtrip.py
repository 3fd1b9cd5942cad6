"""Requests per second, latency and CPU of the broker, beside what others put between a client and a worker.

The broker runs twice, without and with keys (CURVE). zmq.proxy is libzmq's own (C: no queues, no routing, no leases),
NATS has its server, gRPC aio nothing in the middle: its figures are the server's. docs/benchmarks.md says how to read
them. The load is in zrt_peers.py, plain_peers.py, nats_peers.py and grpc_peers.py: a process for each peer.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import msgspec
import psutil
from processes import BROKER, HERE, Ready, child, cpu_s, free_port, start, start_peer, tell
from reports import Circumstances, circumstances, find_programs, progress, write
from rich.console import Console
from rich.table import Table
from rounds import Order, Outcome

from zmqrt.protocol.keys import generate

_WARM_UP_S: Final = 0.3
BROKER_NAME: Final = "broker"
KEYED: Final = "broker, keys"
PROXY: Final = "zmq.proxy"
LOADS: Final = ((1, 100), (32, 100), (512, 100), (1, 10_000), (32, 10_000), (1, 1_000_000), (8, 1_000_000))
"""In flight, and bytes of a body."""


class Sample(msgspec.Struct, frozen=True):
    """One round. CPU is that of what stands in the middle; the main thread of the broker is its Python."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    main_thread_us: float
    refused: int


class Case(msgspec.Struct, frozen=True):
    """Everything measured under one load, round by round."""

    in_flight: int
    body_bytes: int
    samples: dict[str, list[Sample]]
    """By what stands in the middle."""

    @property
    def broker(self) -> list[Sample]:
        """Ours."""
        return self.samples[BROKER_NAME]

    def ratios(self, other: str, field: str = "requests_per_s") -> list[float]:
        """Return a field of the broker over that of another, round by round."""
        pairs = zip(self.broker, self.samples[other], strict=True)
        return [getattr(ours, field) / max(getattr(theirs, field), 0.01) for ours, theirs in pairs]


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file: where it was measured, and every sample."""

    seconds: float
    left_out: list[str]
    cases: list[Case]


class Route:
    """A client, what stands in the middle, a worker."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        middle: int,
        peers: str,
        client_at: str,
        worker_at: str,
        python: str,
        *,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._middle = middle
        if worker_at:
            start_peer(stack, peers, "worker", worker_at, python=python, env=env)
        self._client, self._said = start_peer(stack, peers, "client", client_at, python=python, env=env)

    def measure(self, depth: int, body_bytes: int, seconds: float) -> Sample:
        """Run a short round to warm up and one that counts."""
        self._run(Order(depth, _WARM_UP_S, body_bytes))
        all_before, main_before = cpu_s(self._middle), self._main_thread_s()
        outcome = self._run(Order(depth, seconds, body_bytes))
        all_after, main_after = cpu_s(self._middle), self._main_thread_s()
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

    def _main_thread_s(self) -> float:
        """Return the CPU seconds so far of the main thread, in hundredths."""
        threads = psutil.Process(self._middle).threads()
        main = next((one for one in threads if one.id == self._middle), None)
        return main.user_time + main.system_time if main else 0.0


def _route(
    stack: contextlib.ExitStack,
    middle: list[str],
    peers: str,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
) -> Route:
    """Start something in the middle that says in a line where it is."""
    process, out = start(stack, *middle, python=python, env=env)
    ends = msgspec.json.decode(out.readline(), type=Ready).endpoints
    return Route(stack, process.pid, peers, ends["clients"], ends.get("workers", ""), python, env=env)


def _with_keys(stack: contextlib.ExitStack) -> Route:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "keys"
    generate(folder)
    return _route(stack, BROKER, "zrt_peers.py", env={"ZMQRT_KEYS": str(folder)})


def _nats(stack: contextlib.ExitStack, programs: dict[str, str]) -> Route:
    port = free_port()
    server = stack.enter_context(child(programs["nats-server"], "-a", "127.0.0.1", "-p", str(port)))
    url = f"nats://127.0.0.1:{port}"
    return Route(stack, server.pid, "nats_peers.py", url, url, programs["nats"])


Start = Callable[[contextlib.ExitStack, dict[str, str]], Route]
MIDDLES: Final[dict[str, tuple[Start, tuple[str, ...]]]] = {
    BROKER_NAME: (lambda stack, _: _route(stack, BROKER, "zrt_peers.py"), ()),
    KEYED: (lambda stack, _: _with_keys(stack), ()),
    PROXY: (lambda stack, _: _route(stack, [str(HERE / "plain_peers.py"), "proxy"], "plain_peers.py"), ()),
    "NATS": (_nats, ("nats-server", "nats")),
    "gRPC aio": (
        lambda stack, programs: _route(
            stack, [str(HERE / "grpc_peers.py"), "server"], "grpc_peers.py", programs["grpc"]
        ),
        ("grpc",),
    ),
}
"""How each is started, and the programs that this takes."""
PROGRAMS: Final = ("nats-server", "nats", "grpc")


def compare(
    loads: Sequence[tuple[int, int]], pairs: int, seconds: float, programs: dict[str, str] | None = None
) -> list[Case]:
    """Measure broker, proxy, broker, proxy … under each load, so that a busy machine disturbs all alike."""
    found = programs or {}
    with contextlib.ExitStack() as stack:
        routes = {
            name: begin(stack, found) for name, (begin, needs) in MIDDLES.items() if all(one in found for one in needs)
        }
        step = stack.enter_context(progress(len(loads) * pairs * len(routes)))
        cases: list[Case] = []
        for depth, body_bytes in loads:
            case = Case(depth, body_bytes, {name: [] for name in routes})
            for number in range(pairs):
                for name, route in routes.items():
                    with step(f"{depth} in flight, {body_bytes} bytes, round {number + 1} of {pairs}: {name}"):
                        case.samples[name].append(route.measure(depth, body_bytes, seconds))
            cases.append(case)
        return cases


def make_table(cases: list[Case]) -> Table:
    """Put the medians of all loads into one table; lowest and highest under the rate and its ratio."""
    table = Table(title="medians of all rounds, (lowest to highest)")
    for name in ("in flight, bytes", "", "requests/s", "p50 us", "p99 us", "CPU us/req", "main thread"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for case in cases:
        for name, samples in case.samples.items():
            table.add_row(
                f"{case.in_flight}, {case.body_bytes:,}",
                name,
                _spread([one.requests_per_s for one in samples], "{:,.0f}"),
                f"{statistics.median(one.p50_us for one in samples):,.0f}",
                f"{statistics.median(one.p99_us for one in samples):,.0f}",
                f"{statistics.median(one.cpu_us for one in samples):.1f}",
                f"{statistics.median(one.main_thread_us for one in samples):.1f}",
            )
        if KEYED in case.samples:
            dearer = (
                statistics.median(case.ratios(KEYED, f)) for f in ("requests_per_s", "p50_us", "p99_us", "cpu_us")
            )
            table.add_row("", "no keys / keys", *(f"{each:.2f}" for each in dearer))
        ratio = f"[bold]{_spread(case.ratios(PROXY), '{:.2f}')}[/bold]"
        fields = ("p50_us", "p99_us", "cpu_us")
        rest = (f"{statistics.median(case.ratios(PROXY, field)):.2f}" for field in fields)
        table.add_row("", "broker / proxy", ratio, *rest, end_section=True)
    return table


def _spread(values: list[float], form: str) -> str:
    low, middle, high = (form.format(f(values)) for f in (min, statistics.median, max))
    return f"{middle}\n({low} to {high})"


@click.command(
    epilog="Examples: 'bench_roundtrip.py --seconds 0.5' for a quick look, '--pairs 11 --save' for figures to publish."
)
@click.option("--seconds", default=2.0, show_default=True, help="Length of one measurement.")
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="Measurements of each, in turn.")
@click.option("--depth", "depths", multiple=True, type=int, help="Requests in flight.  [default: 1, 32, 512 or 8]")
@click.option("--body", "bodies", multiple=True, type=int, help="Bytes of a body.  [default: 100, 10,000, 1,000,000]")
@click.option("--program", "given", multiple=True, metavar="NAME=PATH", help=f"Names: {', '.join(PROGRAMS)}.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(
    *, seconds: float, pairs: int, depths: tuple[int, ...], bodies: tuple[int, ...], given: tuple[str, ...], save: bool
) -> None:
    """Measure how fast requests go through the broker, beside libzmq's own proxy, NATS and gRPC.

    A client keeps some requests in flight, a worker sends each back at once, and the broker stands between them, every
    one in a process of its own. The same is done with zmq.proxy (C, no queues, no routing, no leases) in the middle, in
    turn: broker, proxy, broker, proxy. Trust the ratios within a round; requests/s depend on the machine and on what
    else it does.

    In flight 1 shows latency, 512 what one broker can carry. CPU is that of the process in the middle: all its threads,
    and its main thread, which for the broker is the Python. NATS takes part if nats-server is found and a Python that
    has nats-py is named (nats), gRPC if one that has grpcio is (grpc).
    """
    loads = LOADS if not (depths or bodies) else [(d, b) for b in bodies or (100,) for d in depths or (1, 32, 512)]
    programs, missing = find_programs(PROGRAMS, given)
    cases = compare(loads, pairs, seconds, programs)
    Console(width=max(120, Console().width)).print(make_table(cases))
    refused = sum(one.refused for case in cases for samples in case.samples.values() for one in samples)
    if refused:
        click.echo(f"{refused} requests were refused: these figures are worth nothing", err=True)
    report = Report(**circumstances(), seconds=seconds, left_out=missing, cases=cases)
    click.echo(f"written to {write(report, 'roundtrip', is_kept=save)}")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
