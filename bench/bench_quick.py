"""Has anything become dearer? Counts and ratios beside those that were accepted last, in expected.json; under 90 s.

Counts (core_counts.py, node_counts.py, bridge_counts.py) are the same on every machine and may grow by 2 %. Ratios are
CPU times beside those of a bare Starlette and of libzmq's proxy, loaded in turn; a busy machine moves them, so they may
grow by 40 %.
What has become cheaper is told and fails nothing. `--accept` writes what was found into expected.json, for a commit
that says why.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from typing import Final

import bench_path
import bench_roundtrip
import bridge_counts
import click
import core_counts
import msgspec
import node_counts
from processes import HERE
from rich.console import Console
from rich.table import Table

FILE: Final = HERE / "expected.json"
COUNTS_MAY_GROW: Final = 1.02
RATIOS_MAY_GROW: Final = 1.4
_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


class Expected(msgspec.Struct):
    """What was accepted last."""

    counts: dict[str, dict[str, core_counts.Count]]
    """By version of Python, since each has its own bytecode."""
    ratios: dict[str, float]


class Finding(msgspec.Struct, frozen=True):
    """One figure, what it was expected to be (None: nothing yet), and how many times that it may be."""

    name: str
    found: float
    expected: float | None
    may_grow: float

    @property
    def is_dearer(self) -> bool:
        """Whether it fails the check."""
        return self.expected is not None and self.found > self.expected * self.may_grow

    @property
    def verdict(self) -> str:
        """Say it in a word."""
        if self.expected is None:
            return "new"
        if self.is_dearer:
            return "[bold]dearer[/bold]"
        return "cheaper" if self.found < self.expected / self.may_grow else "as before"


def measure_counts() -> dict[str, core_counts.Count]:
    """Count what the cores, a node and the bridge do."""
    return core_counts.measure() | node_counts.measure() | bridge_counts.measure()


def count(expected: Expected) -> tuple[list[Finding], dict[str, core_counts.Count]]:
    """Count, and compare."""
    found = measure_counts()
    before = expected.counts.get(_PYTHON, {})
    findings: list[Finding] = []
    for name, one in found.items():
        was = before.get(name)
        findings += [
            Finding(f"{name}: bytecodes", one.bytecodes, was.bytecodes if was else None, COUNTS_MAY_GROW),
            Finding(f"{name}: C calls", one.c_calls, was.c_calls if was else None, COUNTS_MAY_GROW),
        ]
    return findings, found


def measure_ratios() -> dict[str, float]:
    """Measure the whole path beside Starlette, and the broker beside the proxy."""
    loads = [bench_path.Load(64, is_stream=False), bench_path.Load(64, is_stream=True)]
    starts: dict[str, bench_path.Start] = {"zmqrt": bench_path.zmqrt, "starlette": bench_path.starlette}
    ratios: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        found = bench_path.Found({}, 0, stack)
        suite = bench_path.Suite(starts, loads, 0)
        rows = bench_path.run("path", suite, found, frozenset(), rounds=5, seconds=0.6)
    by_load = {(row.load, row.contestant): row for row in rows}
    for (load, contestant), row in by_load.items():
        if contestant.startswith("zmqrt"):
            median = statistics.median(row.ratios(by_load[load, "Starlette, no hop"], "cpu_us"))
            ratios[f"{contestant}, {load}: CPU / Starlette's"] = round(median, 2)
    for case in bench_roundtrip.compare([(32, 100), (512, 100)], pairs=5, seconds=0.5):
        median = statistics.median(case.ratios(bench_roundtrip.PROXY, "cpu_us"))
        ratios[f"broker, {case.in_flight} in flight: CPU / zmq.proxy's"] = round(median, 2)
    return ratios


def _show(findings: list[Finding]) -> None:
    table = Table("", "found", "expected", "", title="what a request or a token costs")
    for one in findings:
        expected = "" if one.expected is None else f"{one.expected:,.1f}"
        table.add_row(one.name, f"{one.found:,.1f}", expected, one.verdict)
    Console(width=max(100, Console().width)).print(table)


@click.command(help=__doc__)
@click.option("--counts", "only_counts", is_flag=True, help="Count only: some seconds, nothing is started.")
@click.option("--accept", is_flag=True, help="Write what was found into expected.json.")
def main(*, only_counts: bool, accept: bool) -> None:
    """Compare, or accept."""
    expected = msgspec.json.decode(FILE.read_bytes(), type=Expected) if FILE.exists() else Expected({}, {})
    findings, counts = count(expected)
    ratios: dict[str, float] = {}
    if not only_counts:
        ratios = measure_ratios()
        findings += [Finding(name, one, expected.ratios.get(name), RATIOS_MAY_GROW) for name, one in ratios.items()]
    odd = [one for one in findings if one.verdict != "as before"]
    if odd or not only_counts:
        _show(odd if only_counts else findings)
    if accept:
        accepted = Expected(expected.counts | {_PYTHON: counts}, ratios or expected.ratios)
        FILE.write_bytes(msgspec.json.format(msgspec.json.encode(accepted), indent=1) + b"\n")
        click.echo(f"accepted: bench/{FILE.name}")
    elif dearer := [one.name for one in findings if one.is_dearer]:
        click.echo(f"{len(dearer)} figures have grown; where that is meant: make bench-accept", err=True)
        sys.exit(1)
    else:
        click.echo(f"{len(findings)} figures, none dearer than accepted")


if __name__ == "__main__":
    main()
