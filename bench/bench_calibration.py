"""What a broker says of waits against what they turn out to be, under more load than its fleet can do.

docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import random
import statistics
import time
from pathlib import Path
from typing import Final

import click
import msgspec
from processes import start
from reports import Circumstances, circumstances, write
from zrt_peers import Peer

from zmqrt.protocol import codec, tasks
from zmqrt.protocol import messages as m

MODEL: Final = "mock"
PLOT: Final = Path(__file__).parent.parent / "docs" / "images" / "calibration.svg"
_QUIET: Final = ("--log-format", "json", "--log-level", "error")
_DOORS: Final = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
_TOKENS: Final = (4, 8, 16, 32, 64)
_NEAR: Final = 1.25
_LEAST_S: Final = 0.5
"""Waits below this are about when a process had its turn, not about queues."""
_DRAWN: Final = 5
"""Of so many points one is drawn."""
_PING_S: Final = 2.0
_WINDOW_BYTES: Final = 1 << 40


class Told(msgspec.Struct, frozen=True):
    """What was told of a wait, and how long it was from then on."""

    expected_s: float
    actual_s: float
    before: int


class Report(Circumstances, frozen=True, kw_only=True):
    """What goes into the file."""

    factor: float
    seconds: float
    answered: int
    refused: int
    median_ratio: float
    share_near: float
    points: list[Told]


class Waiter:
    """A client that asks by a Poisson clock, and notes what it is told until the first token of each answer."""

    def __init__(self, endpoint: str, seed: int) -> None:
        self._peer = Peer(endpoint)
        self._chance = random.Random(seed)
        self._rids = itertools.count(time.time_ns())
        self._told: dict[bytes, list[tuple[float, float, int]]] = {}
        self._begun: set[bytes] = set()
        self.points: list[Told] = []
        self.answered = self.refused = 0
        self._peer.say([m.Hello(time.time_ns().to_bytes(16, "big"), 1, 1, "calibration", _WINDOW_BYTES)])
        self._peer.hear(codec.TO_CLIENT, 5000)

    def run(self, rate: float, seconds: float) -> None:
        """Ask for so long, then hear all ends."""
        now = time.perf_counter()
        end_at, due_at, ping_at = now + seconds, now, now
        while (now := time.perf_counter()) < end_at or self._told:
            asks: list[m.Message] = []
            while due_at <= now < end_at:
                due_at += self._chance.expovariate(rate)
                asks.append(self._ask())
            if now >= ping_at:
                ping_at = now + _PING_S
                asks.append(m.Ping(int(now)))
            if asks:
                self._peer.say(asks)
            for message in self._peer.hear(codec.TO_CLIENT, 2):
                self._take(message, time.perf_counter())

    def _ask(self) -> m.Request:
        rid, tokens = next(self._rids).to_bytes(16, "big"), self._chance.choice(_TOKENS)
        self._told[rid] = []
        body = tasks.encode(tasks.Generate(prompt="?" * 50, raw=True, max_tokens=tokens))
        flags = m.STREAM | m.IDEMPOTENT | m.RESUMABLE
        return m.Request(rid, MODEL, 60_000, flags, 0, 0, tokens, body, b"", {"place": True})

    def _take(self, message: m.ToClient, now: float) -> None:
        match message:
            case m.Accepted() if "wait_ms" in message.ext and message.rid in self._told:
                wait_ms, before = int(message.ext["wait_ms"] or 0), int(message.ext["before"] or 0)
                self._told[message.rid].append((now, wait_ms / 1000, before))
            case m.Partial() if message.rid not in self._begun and message.rid in self._told:
                self._begun.add(message.rid)
                self.points += [Told(wait_s, now - at, before) for at, wait_s, before in self._told[message.rid]]
            case m.Final() | m.Error() if message.rid in self._told:
                del self._told[message.rid]
                self.answered += isinstance(message, m.Final)
                self.refused += isinstance(message, m.Error)
            case _:
                pass


def measure(factor: float, seconds: float, nodes: int, slots: int, step_ms: float) -> Waiter:
    """Start a fleet, warm it up, and ask more of it than it can do."""
    with contextlib.ExitStack() as stack:
        _, out = start(stack, "-m", "zmqrt.broker", *_QUIET, *_DOORS)
        where = json.loads(out.readline())["endpoints"]
        mock = ("--engine", "mock", "--served-model-name", MODEL, "--devices", "0", "--slots", str(slots))
        options = ("--engine-opt", f"step_ms={step_ms},eos=never")
        for _ in range(nodes):
            start(stack, "-m", "zmqrt.worker", *_QUIET, "--broker", where["workers"], *mock, *options)[1].readline()
        rate = nodes * slots * 1000 / (step_ms * statistics.fmean(_TOKENS))
        Waiter(where["clients"], 0).run(rate / 2, min(5.0, seconds / 2))
        waiter = Waiter(where["clients"], 1)
        waiter.run(factor * rate, seconds)
        return waiter


@click.command()
@click.option("--factor", default=1.5, show_default=True, help="Times capacity.")
@click.option("--seconds", default=20.0, show_default=True, help="How long is asked.")
@click.option("--nodes", default=2, show_default=True, help="Nodes of the fleet.")
@click.option("--slots", default=4, show_default=True, help="Requests beside each other on a node.")
@click.option("--step-ms", default=20.0, show_default=True, help="Length of a step of an engine.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, and draw the plot of the docs.")
def main(factor: float, seconds: float, nodes: int, slots: int, step_ms: float, save: bool) -> None:  # noqa: FBT001
    """Compare waits as they were told with those that came.

    Requests of 4 to 64 tokens come by a Poisson clock, ask where they stand, and are told once a second. Each telling
    is a point: how long it will take, and how long it took from then to the first token. Waits under 0.5 s do not count
    for the two figures.
    """
    waiter = measure(factor, seconds, nodes, slots, step_ms)
    counted = [point for point in waiter.points if max(point.expected_s, point.actual_s) >= _LEAST_S]
    if not counted:
        raise click.ClickException("nobody has waited; ask for more (--factor), or for longer (--seconds)")
    ratios = [point.actual_s / max(point.expected_s, 0.001) for point in counted]
    near = sum(1 / _NEAR <= ratio <= _NEAR for ratio in ratios) / len(ratios)
    report = Report(
        **circumstances(),
        factor=factor,
        seconds=seconds,
        answered=waiter.answered,
        refused=waiter.refused,
        median_ratio=statistics.median(ratios),
        share_near=near,
        points=waiter.points,
    )
    click.echo(
        f"{len(counted)} tellings of {waiter.answered} answers, {waiter.refused} refused: median of actual over"
        f" expected {report.median_ratio:.2f}, within {_NEAR}x {100 * near:.0f} %"
    )
    click.echo(f"load average {report.load_average[0]:.1f}; written to {write(report, 'calibration', is_kept=save)}")
    if save and importlib.util.find_spec("matplotlib"):
        import calibration_plot

        calibration_plot.draw([(point.expected_s, point.actual_s) for point in waiter.points[::_DRAWN]], _NEAR, PLOT)


if __name__ == "__main__":
    main()
