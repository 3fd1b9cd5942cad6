"""What a request and a token cost on the whole path, beside other servers and, as a gateway, beside other gateways.

Contestants of a suite run at the same time and are loaded in turn, each round all of them, so that a busy machine
disturbs all alike. Requests ask for one token of a model that needs no time (`path`, `gateway`), streams for 128; in
`path-10ms` and `gateway-10ms` a stream has a token every 10 ms. CPU time is that of all processes of a contestant,
children too; as a gateway without the engine. Programs are found on PATH or by `--program NAME=PATH`; for mosec,
litserve, ray and bentoml that is the Python that has them. What is not found is left out. docs/benchmarks.md has
figures.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import click
import httpx
import msgspec
import psutil
from plain_engine import MODEL
from processes import HERE, child, cpu_s, free_port, start, tell, wait_until_up
from reports import Circumstances, circumstances, find_programs, progress, write
from rich.console import Console
from rich.table import Table
from rounds import CallOrder, CallOutcome

TOKENS: Final = 128
_WARM_UP_S: Final = 0.3
_QUIET: Final = ("--log-format", "json", "--log-level", "warning")
INFER_END: Final = "event: done"
_CHAT_END: Final = "data: [DONE]"


class Part(msgspec.Struct, frozen=True):
    """Some processes of a contestant: one, its children, or both."""

    name: str
    pid: int
    which: Literal["itself", "children", "all"] = "all"
    is_counted: bool = True
    """Whether its CPU time is the contestant's: an engine behind gateways is not."""

    def cpu_s(self) -> float:
        """Add up the CPU seconds so far."""
        pids = [] if self.which == "children" else [self.pid]
        if self.which != "itself":
            pids += [one.pid for one in psutil.Process(self.pid).children(recursive=True)]
        return sum(cpu_s(pid) for pid in pids)


class Contestant(msgspec.Struct, frozen=True):
    """A server that is up."""

    name: str
    url: str
    """What is asked; for native calls the endpoint of the broker."""
    parts: list[Part]
    model: str = ""
    """If given, it is asked for chat completions."""
    is_native: bool = False
    has_streams: bool = True


class Load(msgspec.Struct, frozen=True):
    """So many callers at once."""

    depth: int
    is_stream: bool

    @property
    def name(self) -> str:
        """Say it: `64 streams`."""
        return f"{self.depth} {'stream' if self.is_stream else 'request'}{'s' if self.depth > 1 else ''}"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One round. CPU is in microseconds for each request, or for each token of a stream."""

    per_s: float
    """Requests, or tokens of streams."""
    p50_ms: float
    """Of a request, or of a whole stream."""
    p99_ms: float
    cpu_us: float
    parts_us: dict[str, float]
    """The same by process; what stands behind a gateway too, which `cpu_us` leaves out."""
    client_us: float
    """Of the process that asks, which no total has in it."""
    client_share: float
    """Of one core, for which the process that asks was busy: near 1 it is what is measured."""
    events_per_token: float
    failed: int
    """Refused, or not whole, or not answered at all."""


class Row(msgspec.Struct, frozen=True):
    """All rounds of one contestant under one load."""

    suite: str
    load: str
    contestant: str
    rounds: list[Figure]

    def median(self, field: str) -> float:
        """Return the median of a field."""
        values: list[float] = [getattr(figure, field) for figure in self.rounds]
        return statistics.median(values)

    def ratios(self, other: Row, field: str) -> list[float]:
        """Return a field over that of another, round by round: what disturbed one of them disturbed both."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return [getattr(mine, field) / max(getattr(its, field), 1e-9) for mine, its in pairs]


class Report(Circumstances, frozen=True, kw_only=True):
    """What is written to a file."""

    seconds: float
    left_out: list[str]
    peers: dict[str, str]
    """Versions of what it was compared with."""
    load_average_before: tuple[float, float, float]
    rows: list[Row]


class Found(msgspec.Struct, frozen=True):
    """What the contestants are made of."""

    programs: dict[str, str]
    step_ms: int
    stack: contextlib.ExitStack

    def run(self, *command: str, **environment: str) -> int:
        """Start a program that ends with the suite; return its pid."""
        return self.stack.enter_context(child(*command, **environment)).pid


def zmqrt(found: Found, *, as_gateway: bool = False) -> list[Contestant]:
    """Start broker, a node with the mock engine, and bridge; they are asked over HTTP and natively."""
    stack = found.stack
    doors = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
    broker, said = start(stack, "-m", "zmqrt.broker", *_QUIET, *doors)
    where = json.loads(said.readline())["endpoints"]
    pace = ("--engine", "mock", "--devices", "0", "--slots", "512", "--node-max-capacity", "1000")
    options = ("--engine-opt", f"step_ms={found.step_ms},eos=never")
    agent, said = start(stack, "-m", "zmqrt.worker", *_QUIET, "--broker", where["workers"], *pace, *options)
    said.readline()
    bridge, said = start(stack, "-m", "zmqrt.bridge_http", *_QUIET, "--broker", where["clients"], "--port", "0")
    url = json.loads(said.readline())["endpoints"]["http"]
    wait_until_up(f"{url}/readyz")
    parts = [
        Part("broker", broker.pid),
        Part("agent", agent.pid, "itself"),
        Part("engine", agent.pid, "children", is_counted=not as_gateway),
    ]
    bridge_part = Part("bridge", bridge.pid)
    if as_gateway:
        model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        return [Contestant("zmqrt", f"{url}/v1/chat/completions", [*parts, bridge_part], model=model)]
    return [
        Contestant("zmqrt HTTP", f"{url}/infer", [*parts, bridge_part]),
        Contestant("zmqrt native", where["clients"], parts, is_native=True),
    ]


def mosec(found: Found) -> list[Contestant]:
    """Start mosec with one worker."""
    port = str(free_port())
    # It puts its sockets into a folder, which is the same for all of them unless it is told.
    folder = found.stack.enter_context(tempfile.TemporaryDirectory())
    words = ("--address", "127.0.0.1", "--port", port, "--path", f"{folder}/s", "--log-level", "warning")
    pid = found.run(found.programs["mosec"], str(HERE / "mosec_engine.py"), *words)
    wait_until_up(f"http://127.0.0.1:{port}/")
    return [Contestant("mosec", f"http://127.0.0.1:{port}/inference", [Part("server", pid)], has_streams=False)]


def in_worker(name: str, known: str, health: str, *words: str) -> Callable[[Found], list[Contestant]]:
    """Return what starts a server that hands requests to one worker process: NAME_engine.py in its own Python."""

    def begin(found: Found) -> list[Contestant]:
        port = str(free_port())
        pid = found.run(found.programs[name], str(HERE / f"{name}_engine.py"), port, *words)
        wait_until_up(f"http://127.0.0.1:{port}{health}")
        return [Contestant(known, f"http://127.0.0.1:{port}/infer", [Part("server", pid)], has_streams=False)]

    return begin


def starlette(found: Found) -> list[Contestant]:
    """Start Starlette, which answers by itself."""
    port = str(free_port())
    pid = found.run(sys.executable, str(HERE / "bridge_servers.py"), "starlette", port, str(found.step_ms))
    wait_until_up(f"http://127.0.0.1:{port}/health")
    return [Contestant("Starlette, no hop", f"http://127.0.0.1:{port}/infer", [Part("server", pid)])]


def bare(found: Found) -> list[Contestant]:
    """Start the hops of zmqrt without what it does."""
    port = str(free_port())
    pid = found.run(sys.executable, str(HERE / "bare_path.py"), port, str(found.step_ms))
    wait_until_up(f"http://127.0.0.1:{port}/")
    return [Contestant("bare hops", f"http://127.0.0.1:{port}/infer", [Part("server", pid)])]


def gateway(found: Found) -> list[Contestant]:
    """Start a FastAPI gateway in front of a plain server."""
    url, engine = _plain_engine(found)
    port = str(free_port())
    pid = found.run(sys.executable, str(HERE / "bridge_servers.py"), "gateway", port, url)
    wait_until_up(f"http://127.0.0.1:{port}/health")
    parts = [Part("gateway", pid), Part("server", engine)]
    return [Contestant("FastAPI + httpx", f"http://127.0.0.1:{port}/infer", parts)]


def _plain_engine(found: Found) -> tuple[str, int]:
    """Start a plain engine; return its address and pid."""
    port = str(free_port())
    pid = found.run(sys.executable, str(HERE / "plain_engine.py"), port, str(found.step_ms))
    wait_until_up(f"http://127.0.0.1:{port}/health")
    return f"http://127.0.0.1:{port}", pid


def _in_front(name: str, url: str, pid: int, engine: int) -> list[Contestant]:
    parts = [Part("gateway", pid), Part("engine", engine, is_counted=False)]
    return [Contestant(name, f"{url}/v1/chat/completions", parts, model=MODEL)]


def no_gateway(found: Found) -> list[Contestant]:
    """Start a plain engine alone."""
    url, pid = _plain_engine(found)
    return [Contestant("no gateway", f"{url}/v1/chat/completions", [Part("engine", pid)], model=MODEL)]


def router(name: str) -> Callable[[Found], list[Contestant]]:
    """Return what starts vllm-router or smg in front of a plain engine: they take the same flags."""

    def begin(found: Found) -> list[Contestant]:
        engine, engine_pid = _plain_engine(found)
        port, metrics = free_port(), free_port()
        command = [found.programs[name], *(["launch"] if name == "smg" else [])]
        words = ("--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin", "--worker-urls", engine)
        pid = found.run(*command, *words, "--prometheus-port", str(metrics), "--log-level", "error")
        wait_until_up(f"http://127.0.0.1:{port}/health")
        return _in_front(name, f"http://127.0.0.1:{port}", pid, engine_pid)

    return begin


def litellm(found: Found) -> list[Contestant]:
    """Start LiteLLM's proxy in front of a plain engine."""
    engine, engine_pid = _plain_engine(found)
    port = free_port()
    through = {"model": f"openai/{MODEL}", "api_base": f"{engine}/v1", "api_key": "none"}
    config = Path(found.stack.enter_context(tempfile.TemporaryDirectory()), "config.yaml")  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": through}]}))
    words = ("--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    pid = found.run(found.programs["litellm"], *words, **local)
    wait_until_up(f"http://127.0.0.1:{port}/health/liveliness")
    return _in_front("LiteLLM", f"http://127.0.0.1:{port}", pid, engine_pid)


Start = Callable[[Found], list[Contestant]]
PATH: Final[dict[str, Start]] = {
    "zmqrt": zmqrt,
    "mosec": mosec,
    "litserve": in_worker("litserve", "LitServe", "/health", "whole"),
    "ray": in_worker("ray", "Ray Serve", "/", "whole"),
    "bentoml": in_worker("bentoml", "BentoML", "/livez"),
    "starlette": starlette,
    "bare": bare,
    "fastapi": gateway,
}
GATEWAYS: Final[dict[str, Start]] = {
    "zmqrt": lambda found: zmqrt(found, as_gateway=True),
    "litellm": litellm,
    "smg": router("smg"),
    "vllm-router": router("vllm-router"),
    "none": no_gateway,
}
OTHERS: Final = ("mosec", "litserve", "ray", "bentoml", "litellm", "smg", "vllm-router")
"""Programs that may be missing."""


class Suite(msgspec.Struct, frozen=True):
    """Who is compared, and under what."""

    starts: dict[str, Start]
    loads: list[Load]
    step_ms: int


_STREAMS: Final = [Load(1, is_stream=True), Load(64, is_stream=True)]
SUITES: Final = {
    "path": Suite(PATH, [*(Load(depth, is_stream=False) for depth in (1, 8, 64)), *_STREAMS], 0),
    "path-10ms": Suite({name: PATH[name] for name in ("zmqrt", "starlette", "bare", "fastapi")}, _STREAMS, 10),
    "gateway": Suite(GATEWAYS, [Load(1, is_stream=False), Load(64, is_stream=False), _STREAMS[1]], 0),
    "gateway-10ms": Suite(GATEWAYS, _STREAMS, 10),
}


class Asker:
    """The processes that ask: one over HTTP, one through the library."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._http, self._http_said = start(stack, str(HERE / "http_load.py"))
        self._native, self._native_said = start(stack, str(HERE / "native_load.py"))
        for said in (self._http_said, self._native_said):
            assert said.readline() == "ready\n"

    def measure(self, contestant: Contestant, load: Load, seconds: float) -> Figure:
        """Warm up, then run a round that counts."""
        self._ask(contestant, load, _WARM_UP_S)
        before = [part.cpu_s() for part in contestant.parts]
        outcome = self._ask(contestant, load, seconds)
        spent = [part.cpu_s() - was for part, was in zip(contestant.parts, before, strict=True)]
        units = max(1, outcome.answered * (TOKENS if load.is_stream else 1))
        parts_us = {part.name: 1e6 * seconds_ / units for part, seconds_ in zip(contestant.parts, spent, strict=True)}
        return Figure(
            per_s=units / outcome.elapsed_s if outcome.answered else 0.0,
            p50_ms=outcome.p50_us / 1000,
            p99_ms=outcome.p99_us / 1000,
            cpu_us=sum(parts_us[part.name] for part in contestant.parts if part.is_counted),
            parts_us=parts_us,
            client_us=1e6 * outcome.cpu_s / units,
            client_share=outcome.cpu_s / outcome.elapsed_s,
            events_per_token=outcome.events / units if load.is_stream else 0.0,
            failed=outcome.refused + outcome.stalled,
        )

    def _ask(self, contestant: Contestant, load: Load, seconds: float) -> CallOutcome:
        order = CallOrder(
            depth=load.depth,
            seconds=seconds,
            url=contestant.url,
            max_tokens=TOKENS if load.is_stream else 1,
            is_stream=load.is_stream,
            model=contestant.model,
            end_mark="" if not load.is_stream else _CHAT_END if contestant.model else INFER_END,
        )
        process, said = (self._native, self._native_said) if contestant.is_native else (self._http, self._http_said)
        tell(process, msgspec.json.encode(order).decode())
        line = said.readline()
        if not line:
            raise click.ClickException(f"asking {contestant.name} failed; what was written stands above")
        return msgspec.json.decode(line, type=CallOutcome)


def run(name: str, suite: Suite, found: Found, only: frozenset[str], rounds: int, seconds: float) -> list[Row]:
    """Start all contestants of a suite, and load them in turn."""
    asker = Asker(found.stack)
    contestants: list[Contestant] = []
    for who, begin in suite.starts.items():
        if (not only or who in only) and (who not in OTHERS or who in found.programs):
            contestants += begin(found)
    rows = {
        (load, one.name): Row(name, load.name, one.name, [])
        for load in suite.loads
        for one in contestants
        if one.has_streams or not load.is_stream
    }
    with progress(rounds * len(rows)) as step:
        for number in range(rounds):
            for load, one in itertools.product(suite.loads, contestants):
                if row := rows.get((load, one.name)):
                    with step(f"{name}, round {number + 1} of {rounds}: {load.name}, {one.name}"):
                        row.rounds.append(asker.measure(one, load, seconds))
    return list(rows.values())


def make_table(rows: list[Row], title: str) -> Table:
    """Put the medians into a table; lowest and highest beside the rate."""
    table = Table(title=title)
    for column in ("load", "contestant", "requests or tokens/s", "p50 ms", "p99 ms", "CPU us", "of which", "client us"):
        table.add_column(column, justify="left" if column in ("load", "contestant", "of which") else "right")
    for row in rows:
        rates = [figure.per_s for figure in row.rounds]
        parts = ", ".join(
            f"{part} {statistics.median(figure.parts_us[part] for figure in row.rounds):,.0f}"
            for part in (row.rounds[0].parts_us if len(row.rounds[0].parts_us) > 1 else ())
        )
        failed = sum(figure.failed for figure in row.rounds)
        table.add_row(
            row.load,
            row.contestant + (f" [bold]({failed} failed)[/bold]" if failed else ""),
            f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
            f"{row.median('p50_ms'):,.2f}",
            f"{row.median('p99_ms'):,.2f}",
            f"{row.median('cpu_us'):,.1f}",
            parts,
            f"{row.median('client_us'):,.1f}" + ("!" if row.median("client_share") > 0.9 else ""),
        )
    return table


def _peers(programs: dict[str, str]) -> dict[str, str]:
    """Ask the Python beside each program for the version of its package."""
    versions: dict[str, str] = {}
    for name, program in programs.items():
        python = Path(program).parent / "python"
        code = f"from importlib.metadata import version; print(version({name!r}))"
        ran = (
            subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
            if python.exists()
            else None
        )
        versions[name] = ran.stdout.strip() if ran and ran.returncode == 0 else "?"
    return versions


@click.command(help=__doc__)
@click.option("--suite", "suites", multiple=True, type=click.Choice(list(SUITES)), help="Run these alone.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Rounds of each, in turn.")
@click.option("--seconds", default=1.5, show_default=True, help="Length of a round.")
@click.option("--program", "programs", multiple=True, metavar="NAME=PATH", help=f"Names: {', '.join(OTHERS)}.")
@click.option("--only", multiple=True, type=click.Choice(sorted({*PATH, *GATEWAYS})), help="Compare these alone.")
@click.option("--save", is_flag=True, help="Write to bench/results/, which git keeps, not to bench/out/.")
def main(
    *,
    suites: tuple[str, ...],
    rounds: int,
    seconds: float,
    programs: tuple[str, ...],
    only: tuple[str, ...],
    save: bool,
) -> None:
    """Run the comparison."""
    wanted = {name for suite in suites or SUITES for name in SUITES[suite].starts if not only or name in only}
    there, left_out = find_programs([name for name in OTHERS if name in wanted], programs)
    before = os.getloadavg()
    rows: list[Row] = []
    console = Console(width=max(150, Console().width))
    for name in suites or SUITES:
        with contextlib.ExitStack() as stack:
            rows += run(name, SUITES[name], Found(there, SUITES[name].step_ms, stack), frozenset(only), rounds, seconds)
        title = f"{name}: medians of {rounds} rounds of {seconds:g} s (lowest to highest)"
        console.print(make_table([row for row in rows if row.suite == name], title))
    report = Report(
        **circumstances("starlette", "uvicorn", "uvloop", "fastapi", "httpx"),
        seconds=seconds,
        left_out=left_out,
        peers=_peers(there),
        load_average_before=before,
        rows=rows,
    )
    click.echo(f"written to {write(report, 'path', is_kept=save)}")


if __name__ == "__main__":
    main()
