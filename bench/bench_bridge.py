"""What HTTP costs: the bridge, beside a bare echo on the same server, and beside a classic gateway in front of a node.

All of them in one run, in turn, with the same client. Requests ask for one token of a model that needs no time, streams
for tokens that come every 10 ms. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import psutil
from processes import start
from rich.console import Console
from rich.table import Table

HERE: Final = Path(__file__).parent
_QUIET: Final = ("--log-format", "json", "--log-level", "warning")


class Target(msgspec.Struct, frozen=True):
    """A server, and all processes that work for it."""

    name: str
    url: str
    pids: list[int]


class Figure(msgspec.Struct, frozen=True):
    """One round."""

    requests_per_s: float
    tokens_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """CPU time of all processes of the target for a request, or for a token of a stream."""


class Report(msgspec.Struct, frozen=True):
    """What is written to a file."""

    command: str
    versions: dict[str, str]
    cores: int
    load_average: tuple[float, float, float]
    rounds: dict[str, list[Figure]]


def start_ours(stack: contextlib.ExitStack, node: str, step_ms: int) -> Target:
    """Start broker, mock node and bridge."""
    broker, said = start(
        stack, "-m", "zmqrt.broker", *_QUIET, "--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0"
    )
    where = json.loads(said.readline())["endpoints"]
    pace = ("--engine", "mock", "--devices", "0", "--engine-opt", f"step_ms={step_ms},eos=never", "--slots", "512")
    limits = ("--node-max-capacity", "1000")
    worker, said = start(stack, "-m", "zmqrt.worker", *_QUIET, "--broker", where["workers"], *pace, *limits)
    said.readline()
    bridge, said = start(stack, "-m", "zmqrt.bridge_http", *_QUIET, "--broker", where["clients"], "--port", "0")
    url = json.loads(said.readline())["endpoints"]["http"]
    _wait_until_served(url)
    return Target(node, url, [broker.pid, worker.pid, bridge.pid])


def start_other(stack: contextlib.ExitStack, name: str, *arguments: str, with_: Target | None = None) -> Target:
    """Start a server of bridge_servers.py; `with_` works for it."""
    process, said = start(stack, str(HERE / "bridge_servers.py"), *arguments)
    pids = [process.pid, *(with_.pids if with_ is not None else ())]
    return Target(name, said.readline().strip(), pids)


def _wait_until_served(url: str) -> None:
    import urllib.request

    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz") as answer:  # noqa: S310 - our own
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise click.ClickException("the fleet did not get ready")


def measure(target: Target, depth: int, seconds: float, *, stream: bool) -> Figure:
    """Run one round."""
    before = _cpu_s(target)
    words = [target.url, str(depth), str(seconds), "100" if stream else "1", *(["stream"] if stream else [])]
    ran = subprocess.run(
        [sys.executable, str(HERE / "http_load.py"), *words], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise click.ClickException(f"{target.name}: {ran.stderr.strip()[-300:]}")
    said: dict[str, Any] = json.loads(ran.stdout)
    spent = _cpu_s(target) - before
    things = said["requests"] * 100 if stream else said["requests"]
    return Figure(
        requests_per_s=said["requests_per_s"],
        tokens_per_s=said["tokens_per_s"],
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        cpu_us=1e6 * spent / max(1, things),
    )


def _cpu_s(target: Target) -> float:
    """Add up the CPU time of all processes, children included."""
    total = 0.0
    for pid in target.pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


@click.command()
@click.option("--depths", default="1,32", show_default=True, help="Requests at once.")
@click.option("--streams", default=32, show_default=True, help="Streams at once.")
@click.option("--rounds", default=5, show_default=True, help="Rounds of each, in turn.")
@click.option("--seconds", default=2.0, show_default=True, help="Length of a round.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(*, depths: str, streams: int, rounds: int, seconds: float, save: bool) -> None:
    """Measure requests/s, latency and CPU time of all server processes, for whole answers and for streams."""
    found: dict[str, list[Figure]] = {}
    with contextlib.ExitStack() as stack:
        node = start_other(stack, "node", "node")
        targets = [
            start_other(stack, "echo", "echo"),
            start_ours(stack, "bridge", 0),
            start_other(stack, "gateway", "gateway", node.url, with_=node),
        ]
        streaming = [start_ours(stack, "bridge", 10), targets[2]]
        loads = [(f"{depth} at once", int(depth), False, targets) for depth in depths.split(",")]
        loads.append((f"{streams} streams", streams, True, streaming))
        for number in range(rounds):
            for name, depth, is_stream, those in loads:
                for target in those:
                    print(f"\rround {number + 1} of {rounds}: {name}, {target.name} …      ", end="", file=sys.stderr)
                    figure = measure(target, depth, seconds, stream=is_stream)
                    found.setdefault(f"{name}: {target.name}", []).append(figure)
        print(file=sys.stderr)
    table = Table(title=f"medians of {rounds} rounds of {seconds:g} s (lowest to highest)")
    for column in ("load: server", "requests/s", "tokens/s", "p50 ms", "p99 ms", "server CPU us a request or token"):
        table.add_column(column, justify="left" if column.startswith("load") else "right")
    for name, figures in found.items():
        rates = [one.requests_per_s for one in figures]
        row = (f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",)
        rest = [
            statistics.median(getattr(one, field) for one in figures)
            for field in ("tokens_per_s", "p50_ms", "p99_ms", "cpu_us")
        ]
        table.add_row(name, *row, f"{rest[0]:,.0f}", f"{rest[1]:.2f}", f"{rest[2]:.2f}", f"{rest[3]:.0f}")
    Console(width=max(120, Console().width)).print(table)
    report = Report(
        command=" ".join(["python", *sys.argv]),
        versions={name: version(name) for name in ("zmqrt", "starlette", "uvicorn", "fastapi", "httpx")}
        | {"python": platform.python_version()},
        cores=os.cpu_count() or 0,
        load_average=os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0),
        rounds=found,
    )
    folder = HERE / ("results" if save else "out")
    folder.mkdir(exist_ok=True)
    path = folder / time.strftime("bridge-%Y%m%d-%H%M%S.json")
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    click.echo(f"written to {os.path.relpath(path)}")


if __name__ == "__main__":
    main()
