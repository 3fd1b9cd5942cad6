"""What a fleet that grows costs a broker: CPU for each request, memory for each idle peer, and all clients at once.

docs/benchmarks.md says how to read the figures. The many are played by crowd.py, several processes of it; the few that
ask and answer are open_loop.py and zrt_peers.py.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from typing import IO, Final

import click
import msgspec
import psutil
from crowd import BODY, GIVE_UP_S, Gathering
from open_loop import OpenOrder, OpenOutcome
from processes import BROKER, HERE, Ready, cpu_s, start, start_peer, tell
from reports import Circumstances, circumstances, write
from rich.console import Console
from rich.table import Table
from zrt_peers import SERVICE

from zmqrt.protocol import descriptors

REAL_NODES: Final = 2
"""Nodes that answer, at each broker."""
_CROWDS: Final = 4
"""Processes that play a crowd: one alone would be slower than the broker."""
_FDS_OF_PEER: Final = 2
"""Descriptors of one connection in a process of the crowd."""
_FDS_OF_REST: Final = 200
_SETTLE_S: Final = 1.0
_WARM_UP_S: Final = 0.5
_QUIET: Final = ("--log-level", "critical")
"""A whole crowd that leaves at the end would be a page of warnings."""
_DEADLINE_S: Final = 30.0
_FEW: Final = 100
"""Below so many peers memory for each of them is chance."""
_GOAL_RATIO: Final = 1.15
_GOAL_BYTES: Final = 32 << 10
_GOAL_STORM_S: Final = 10.0


class Size(msgspec.Struct, frozen=True):
    """A fleet: so many nodes and clients in all, evenly spread over the brokers."""

    nodes: int
    clients: int
    brokers: int = 1

    @property
    def name(self) -> str:
        """Say it."""
        where = "one broker" if self.brokers == 1 else f"{self.brokers} brokers"
        return f"{self.nodes:,} nodes, {self.clients:,} client{'s' * (self.clients > 1)}, {where}"

    @property
    def idle_nodes(self) -> int:
        """Those at each broker that take no work."""
        return max(0, self.nodes // self.brokers - REAL_NODES)

    @property
    def idle_clients(self) -> int:
        """Those at each broker that ask nothing."""
        return max(0, self.clients // self.brokers - 1)

    @property
    def descriptors(self) -> int:
        """How many the fullest process needs: a broker, or one that plays clients."""
        broker = self.idle_nodes + self.idle_clients + _FDS_OF_REST
        return max(broker, _FDS_OF_PEER * max(self.idle_nodes, self.idle_clients) // _CROWDS + _FDS_OF_REST)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet under load for a moment; CPU is that of all its brokers together."""

    cpu_us: float
    """For each request, beyond what the idle fleet costs in the same time."""
    whole_cpu_us: float
    """The same with what it costs."""
    idle_cores: float
    """Cores that the brokers use while nobody asks anything: heartbeats."""
    p50_us: float
    p99_us: float
    lag_p99_ms: float
    """How late the asking client was: above some milliseconds the machine is what is measured."""
    refused: int


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """One fleet, and in turn with it the same brokers without its crowd."""

    size: Size
    bytes_per_peer: float
    """Resident memory of the brokers for each idle peer. What the kernel holds for a connection is not in it."""
    gathered_s: float
    """Until all were in that one process plays; they come one after the other."""
    samples: list[Sample]
    without: list[Sample]

    def median(self, field: str) -> float:
        """Return the median of a field."""
        values: list[float] = [getattr(sample, field) for sample in self.samples]
        return statistics.median(values)

    @property
    def ratio(self) -> float:
        """CPU for a request over that without the crowd: the median over the pairs."""
        pairs = zip(self.samples, self.without, strict=True)
        return statistics.median(sample.cpu_us / base.cpu_us for sample, base in pairs)


class Storm(msgspec.Struct, frozen=True):
    """All clients lose their connections at once, and each comes back for one answer."""

    clients: int
    elapsed_s: float
    """From the cut to the last answer."""
    half_s: float
    refused: int
    """For good: told so, or without an answer after a minute."""
    again: int
    postponed: int
    broker_cpu_s: float
    crowd_cpu_s: float


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file: where it was measured, and every sample."""

    seconds: float
    rate: float
    most_descriptors: int | None
    left_out: list[str]
    growths: list[Growth]
    storms: list[Storm]


class CrowdError(click.ClickException):
    """The machine, or the broker, is too slow for so many."""


class Played:
    """A crowd: some processes that each play a share of it."""

    def __init__(self, stack: contextlib.ExitStack, role: str, endpoint: str, count: int, first: int) -> None:
        share = -(-count // _CROWDS)
        program = str(HERE / "crowd.py")
        self._processes = [
            start(stack, program, role, endpoint, str(first + begin), str(min(share, count - begin)))
            for begin in range(0, count, share)
        ]
        self.first = [self._read(out) for _, out in self._processes]
        """How each process found its way in."""
        if any(one.refused or one.missing for one in self.first):
            missing = sum(one.refused + one.missing for one in self.first)
            raise CrowdError(f"{missing} of {count} {role} did not come in within {GIVE_UP_S:.0f} s")

    def storm(self) -> list[Gathering]:
        """Cut all connections, and wait until all are answered again."""
        for process, _ in self._processes:
            tell(process, "storm")
        return [self._read(out) for _, out in self._processes]

    def _read(self, out: IO[str]) -> Gathering:
        if not (line := out.readline()):
            raise click.ClickException("a process of the crowd ended; what it wrote stands above")
        return msgspec.json.decode(line, type=Gathering)


class Fleet:
    """Brokers with some real peers each, and the crowd around them."""

    def __init__(self, stack: contextlib.ExitStack, size: Size) -> None:
        self._stack = stack
        self._size = size
        self._doors: list[Ready] = []
        self._brokers: list[psutil.Process] = []
        self._clients: list[tuple[subprocess.Popen[str], IO[str]]] = []
        for _ in range(size.brokers):
            process, out = start(stack, *BROKER, *_QUIET)
            door = msgspec.json.decode(out.readline(), type=Ready)
            self._brokers.append(psutil.Process(process.pid))
            self._doors.append(door)
            for _ in range(REAL_NODES):
                start_peer(stack, "zrt_peers.py", "worker", door.endpoints["workers"])
            self._clients.append(start_peer(stack, "open_loop.py", "client", door.endpoints["clients"]))

    def gather(self) -> list[Played]:
        """Let the crowd come in."""
        crowds = [
            Played(self._stack, role, door.endpoints["workers" if role == "nodes" else "clients"], count, number << 20)
            for number, door in enumerate(self._doors)
            for role, count in (("nodes", self._size.idle_nodes), ("clients", self._size.idle_clients))
            if count
        ]
        self.gathered_s = max((one.elapsed_s for crowd in crowds for one in crowd.first), default=0.0)
        return crowds

    def weigh(self) -> float:
        """Let the crowd come in; return the bytes of each of it."""
        before = self._resident_bytes()
        self.gather()
        time.sleep(_SETTLE_S)
        peers = self._size.brokers * (self._size.idle_nodes + self._size.idle_clients)
        return (self._resident_bytes() - before) / max(1, peers)

    def measure(self, rate: float, seconds: float, seed: int) -> Sample:
        """Look at the idle fleet for a while, and as long at the same under load."""
        cpu_before, began_at = self.cpu_s(), time.monotonic()
        time.sleep(seconds)
        idle_cores = (self.cpu_s() - cpu_before) / (time.monotonic() - began_at)
        cpu_before, began_at = self.cpu_s(), time.monotonic()
        outcomes = self.load(rate, seconds, seed)
        used_s, elapsed_s = self.cpu_s() - cpu_before, time.monotonic() - began_at
        answered = sum(outcome.answered for outcome in outcomes)
        return Sample(
            cpu_us=1e6 * (used_s - idle_cores * elapsed_s) / answered,
            whole_cpu_us=1e6 * used_s / answered,
            idle_cores=idle_cores,
            p50_us=statistics.median(outcome.p50_us for outcome in outcomes),
            p99_us=max(outcome.p99_us for outcome in outcomes),
            lag_p99_ms=max(outcome.lag_p99_ms for outcome in outcomes),
            refused=sum(outcome.refused + outcome.failed + outcome.unanswered for outcome in outcomes),
        )

    def cpu_s(self) -> float:
        """Add up the CPU seconds of the brokers so far."""
        return sum(cpu_s(broker.pid) for broker in self._brokers)

    def _resident_bytes(self) -> int:
        return sum(int(broker.memory_info().rss) for broker in self._brokers)

    def load(self, rate: float, seconds: float, seed: int) -> list[OpenOutcome]:
        """Ask at this rate over all brokers, and wait for all ends."""
        for number, (process, _) in enumerate(self._clients):
            order = OpenOrder(
                depth=0,
                seconds=seconds,
                rate=rate / self._size.brokers,
                deadline_s=_DEADLINE_S,
                service=SERVICE,
                body=BODY,
                seed=seed + number,
            )
            tell(process, msgspec.json.encode(order).decode())
        lines = [out.readline() for _, out in self._clients]
        if not all(lines):
            raise click.ClickException("a client ended in the middle of a round; what it wrote stands above")
        return [msgspec.json.decode(line, type=OpenOutcome) for line in lines]


def measure_storm(clients: int) -> Storm:
    """Let clients in, cut them all off at once, and wait until each has one answer."""
    with contextlib.ExitStack() as stack:
        fleet = Fleet(stack, Size(REAL_NODES, clients + 1))
        (crowd,) = fleet.gather()
        time.sleep(_SETTLE_S)
        cpu_before, began_at = fleet.cpu_s(), time.monotonic()
        ways = crowd.storm()
        return Storm(
            clients=clients,
            elapsed_s=time.monotonic() - began_at,
            half_s=statistics.median(way.half_s for way in ways),
            refused=sum(way.refused + way.missing for way in ways),
            again=sum(way.again for way in ways),
            postponed=sum(way.postponed for way in ways),
            broker_cpu_s=fleet.cpu_s() - cpu_before,
            crowd_cpu_s=sum(way.cpu_s for way in ways),
        )


def measure_growth(size: Size, pairs: int, rate: float, seconds: float) -> Growth:
    """Measure a fleet and the same without its crowd in turn, so that a busy machine disturbs both alike."""
    with contextlib.ExitStack() as stack:
        fleet = Fleet(stack, size)
        without = Fleet(stack, Size(size.brokers * REAL_NODES, size.brokers, size.brokers))
        for one in (fleet, without):
            one.load(rate, _WARM_UP_S, 0)
        bytes_per_peer = fleet.weigh()
        growth = Growth(size=size, bytes_per_peer=bytes_per_peer, gathered_s=fleet.gathered_s, samples=[], without=[])
        for number in range(pairs):
            for one, samples in ((fleet, growth.samples), (without, growth.without)):
                samples.append(one.measure(rate, seconds, number))
        return growth


def make_table(growths: list[Growth]) -> Table:
    """Put medians into a table; lowest and highest of the CPU time in brackets."""
    table = Table(title="CPU and memory of all brokers; medians of all pairs, (lowest to highest)")
    names = ("fleet", "CPU us/req", "without crowd", "ratio", "idle cores", "KiB/peer", "p50 us", "p99 us")
    for name in (*names, "lag ms"):
        table.add_column(name, justify="left" if name == "fleet" else "right")
    for growth in growths:
        table.add_row(
            growth.size.name,
            _spread(growth.samples),
            _spread(growth.without),
            f"{growth.ratio:.2f}",
            f"{growth.median('idle_cores'):.3f}",
            f"{growth.bytes_per_peer / 1024:.1f}",
            f"{growth.median('p50_us'):,.0f}",
            f"{growth.median('p99_us'):,.0f}",
            f"{growth.median('lag_p99_ms'):.1f}",
        )
    return table


def _spread(samples: list[Sample]) -> str:
    spent = [sample.cpu_us for sample in samples]
    return f"{statistics.median(spent):.0f} ({min(spent):.0f} to {max(spent):.0f})"


def make_storm_table(storms: list[Storm]) -> Table:
    """One line for each storm."""
    table = Table(title="All connections cut at once; each client comes back and is answered once")
    names = ("clients", "all after s", "half after s", "refused for good", "tries again", "told later", "broker CPU s")
    for name in (*names, "clients' CPU s"):
        table.add_column(name, justify="right")
    for storm in storms:
        table.add_row(
            f"{storm.clients:,}",
            f"{storm.elapsed_s:.2f}",
            f"{storm.half_s:.2f}",
            str(storm.refused),
            str(storm.again),
            str(storm.postponed),
            f"{storm.broker_cpu_s:.2f}",
            f"{storm.crowd_cpu_s:.2f}",
        )
    return table


def make_verdict(growths: list[Growth], storms: list[Storm]) -> list[str]:
    """Say of each goal whether it was met."""
    said: list[str] = []
    for growth in growths:
        text = f"CPU a request {growth.ratio:.2f}x of that without the crowd: {growth.size.name}"
        said.append(f"{_is_met(growth.ratio <= _GOAL_RATIO)} {text}")
        if growth.size.nodes + growth.size.clients > _FEW:
            text = f"{growth.bytes_per_peer / 1024:.1f} KiB for each idle peer: {growth.size.name}"
            said.append(f"{_is_met(growth.bytes_per_peer <= _GOAL_BYTES)} {text}")
    for storm in storms:
        text = f"storm of {storm.clients:,} over in {storm.elapsed_s:.1f} s, {storm.refused} refused for good"
        said.append(f"{_is_met(storm.elapsed_s <= _GOAL_STORM_S and not storm.refused)} {text}")
    return said


def _is_met(verdict: bool) -> str:  # noqa: FBT001 - a word for it
    return "met:   " if verdict else "missed:"


def leave_out(sizes: list[Size], storms: int, most: int | None) -> tuple[list[Size], bool, list[str]]:
    """Leave out what needs more descriptors than there are: (what is left, is the storm, words for the rest)."""
    kept = [size for size in sizes if most is None or size.descriptors <= most]
    words = [
        f"{size.name}: needs {size.descriptors:,} descriptors in one process, and {most:,} are allowed"
        for size in sizes
        if size not in kept
    ]
    needed = 2 * storms + _FDS_OF_REST  # the old connections may be there yet when the new ones come
    has_storm = bool(storms) and (most is None or needed <= most)
    if storms and not has_storm:
        words.append(f"storm of {storms:,}: needs {needed:,} descriptors in one process, and {most:,} are allowed")
    return kept, has_storm, words


@click.command(epilog="Example: 'bench_growth.py --size 200/100/1 --pairs 1 --storm 200' for a quick look.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="NODES/CLIENTS/BROKERS",
    default=("2/1/1", "200/1/1", "1000/1/1", "5000/1/1", "2/1000/1", "2/10000/1", "5000/10000/1", "5000/10000/4"),
    show_default=True,
    help="A fleet to measure; may be repeated. With 2/1/1 chance is what differs.",
)
@click.option("--pairs", default=5, show_default=True, type=click.IntRange(1), help="Pairs of measurements of a fleet.")
@click.option("--seconds", default=3.0, show_default=True, help="Length of one measurement, idle and loaded each.")
@click.option("--rate", default=2000.0, show_default=True, help="Requests per second, over all brokers.")
@click.option("--storm", default=5000, show_default=True, help="Clients of the reconnect storm; 0 = none.")
@click.option("--storms", default=3, show_default=True, type=click.IntRange(1), help="How often there is one.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(  # noqa: PLR0917 - so click calls it
    sizes: tuple[str, ...],
    pairs: int,
    seconds: float,
    rate: float,
    storm: int,
    storms: int,
    save: bool,  # noqa: FBT001
) -> None:
    """Measure what nodes and clients that do nothing cost a broker, and how it takes all clients at once.

    Each fleet has two nodes and a client at each broker that really work: requests come by a Poisson clock. All others,
    the crowd, are registered, beat as real ones do and take no work (nodes), or have a session and ask nothing
    (clients). The same brokers without a crowd are loaded in turn with it. CPU for each request is what the brokers use
    beyond the idle fleet just before, which is shown too. Memory is resident memory of the brokers before and after the
    crowd came, for each of it.

    In a storm all clients close their connections at once and open new ones, as patient as the client library is; it is
    over when each has a session and has one request answered.

    Trust the ratios. CPU for a request at so low a rate is mostly the cost of waking up, and depends on the machine.
    """
    descriptors.raise_limit()
    wanted = [Size(*map(int, size.split("/"))) for size in sizes]
    kept, has_storm, left_out = leave_out(wanted, storm, descriptors.limit())
    for words in left_out:
        click.echo(f"left out: {words}", err=True)
    growths: list[Growth] = []
    for size in kept:
        click.echo(size.name, err=True)
        try:
            growths.append(measure_growth(size, pairs, rate, seconds))
        except CrowdError as error:
            left_out.append(f"{size.name}: {error.message}")
            click.echo(f"left out: {left_out[-1]}", err=True)
    stormy = [measure_storm(storm) for _ in range(storms)] if has_storm else []
    console = Console(width=max(120, Console().width))
    console.print(make_table(growths))
    if stormy:
        console.print(make_storm_table(stormy))
    for line in make_verdict(growths, stormy):
        click.echo(line)
    report = Report(
        **circumstances(),
        seconds=seconds,
        rate=rate,
        most_descriptors=descriptors.limit(),
        left_out=left_out,
        growths=growths,
        storms=stormy,
    )
    path = write(report, "growth", is_kept=save)
    click.echo(f"load average {report.load_average[0]:.1f}; written to {path}")
    refused = sum(sample.refused for growth in growths for sample in (*growth.samples, *growth.without))
    if refused:
        raise click.ClickException(f"{refused} requests were refused: these figures are worth nothing")


if __name__ == "__main__":
    main()
