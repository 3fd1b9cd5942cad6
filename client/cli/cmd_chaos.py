"""`zmqrt chaos`: break a fleet under load, and judge every answer."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ...protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ZmqrtError
from ..chaos.fleet import FleetPlan, Struck
from ..chaos.judge import Judge
from ..chaos.load import LoadPlan
from ..chaos.plan import Blow, FaultKind, usual_counts
from ..chaos.report import Demands
from ..chaos.run import ChaosPlan, run
from .interrupts import Interrupts

_TIMEOUT_S: Final = 30.0
_PIPE_WIDTH: Final = 120
_STREAMS_AT_ONCE: Final = 100


def _read_fault(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[FaultKind, int]:
    """Read KIND=COUNT, some times."""
    counts: dict[FaultKind, int] = {}
    for one in given:
        name, separator, number = one.partition("=")
        try:
            kind, count = FaultKind(name), int(number) if separator else 1
            if count < 0:
                raise ValueError(one)
            counts[kind] = counts.get(kind, 0) + count
        except ValueError:
            known = ", ".join(kind.value for kind in FaultKind)
            raise click.BadParameter(f"{one!r} is not KIND=COUNT with one of: {known}") from None
    return counts


@click.command(help="Break a fleet under load, and judge every answer.")
@click.option(
    "--duration", "duration_s", type=click.FloatRange(1, 86_400), default=60, show_default=True, help="Seconds."
)
@click.option("--seed", type=int, help="Of faults and load; else drawn, and printed.")
@click.option(
    *("--fault", "faults"),
    multiple=True,
    callback=_read_fault,
    metavar="KIND=COUNT",
    help=f"What to do, how often; may be repeated. Kinds: {', '.join(kind.value for kind in FaultKind)}. "
    "[default: a mix of all, 39 a minute]",
)
@click.option("--streams", type=click.IntRange(0, 4000), default=200, show_default=True, help="Open at a time.")
@click.option(
    "--unary", type=click.IntRange(0, 4000), default=20, show_default=True, help="Requests at a time beside them."
)
@click.option("--clients", type=click.IntRange(1, 64), default=4, show_default=True, help="Connections that ask.")
@click.option("--nodes", type=click.IntRange(1, 64), default=4, show_default=True, help="Workers to start.")
@click.option("--brokers", type=click.IntRange(1, 8), default=2, show_default=True, help="Brokers to start.")
@click.option("--model", metavar="NAME", help="A real model instead of the toy one; with --broker, the one to ask.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=48, show_default=True, help="Of each answer of a real model."
)
@click.option("--step-ms", type=click.FloatRange(0), default=50, show_default=True, help="Pace of the toy model.")
@click.option(
    "--heartbeat-interval", "heartbeat_s", type=click.FloatRange(0.1), default=1, show_default=True, help="Seconds."
)
@click.option(
    "--node-eviction-timeout", "eviction_s", type=click.FloatRange(0.2), default=2, show_default=True, help="Seconds."
)
@click.option(
    "--min-resumes",
    type=click.IntRange(0),
    help="Fewer resumes prove nothing [default: as many as streams; with --fault, one for each that cuts them off].",
)
@click.option(
    "--min-fenced", type=click.IntRange(0), help="The same of fenced results [default: 1 if anything is frozen]."
)
@click.option("--broker", "given", metavar="ENDPOINT[,ENDPOINT]", help="Load a running fleet; you break it.")
@click.option("--keys", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of the fleet of --broker.")
@click.option("--insecure", is_flag=True, help="With --broker: send without keys beyond this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
@click.argument("worker_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER FLAGS]")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    duration_s: float,
    seed: int | None,
    faults: dict[FaultKind, int],
    streams: int,
    unary: int,
    clients: int,
    nodes: int,
    brokers: int,
    model: str | None,
    max_tokens: int,
    step_ms: float,
    heartbeat_s: float,
    eviction_s: float,
    min_resumes: int | None,
    min_fenced: int | None,
    given: str | None,
    keys: Path | None,
    insecure: bool,
    as_json: bool,
    worker_arguments: tuple[str, ...],
) -> None:
    """Exit with 1 if an answer is lost, doubled or wrong. Everything after -- goes to the workers."""
    if sys.platform == "win32":
        raise ZmqrtError("chaos needs signals that Windows does not have; run it on Linux or macOS")
    if eviction_s <= heartbeat_s:
        raise click.UsageError("--node-eviction-timeout must be above --heartbeat-interval")
    if not streams + unary:
        raise click.UsageError("nothing to ask: --streams and --unary are both 0")
    if given and (faults or worker_arguments):
        raise click.UsageError("--broker is for a fleet that runs already: you break it; leave out --fault and --")
    if (keys or insecure) and not given:
        raise click.UsageError("--keys and --insecure are for --broker; what is started here is on loopback")
    seed = secrets.randbelow(10**6) if seed is None else seed
    counts = {} if given else faults or usual_counts(duration_s)
    toy = ("--engine", "mock", "--devices", "0", "--slots", str(_STREAMS_AT_ONCE), "--engine-opt", f"step_ms={step_ms}")
    real = ("--model", model or "", "--device", "cpu", "--dtype", "float32", "--allow-download")
    lasts = any(kind.blow in (Blow.FREEZE, Blow.PARTITION) and count for kind, count in counts.items())
    plan = ChaosPlan(
        seed=seed,
        duration_s=duration_s,
        load=LoadPlan(
            streams=streams, unary=unary, clients=clients, timeout_s=_TIMEOUT_S, seed=seed, keys=keys, insecure=insecure
        ),
        fleet=FleetPlan(
            keys=keys,
            insecure=insecure,
            brokers=brokers,
            nodes=nodes,
            heartbeat_s=heartbeat_s,
            eviction_s=eviction_s,
            worker_arguments=(*(real if model else toy), *worker_arguments),
            has_partitions=bool(counts.get(FaultKind.WORKER_PARTITION)),
        ),
        faults=counts,
        demands=Demands(
            resumes=streams if min_resumes is None and counts and not faults else min_resumes,
            fenced=int(lasts) if min_fenced is None else min_fenced,
        ),
        max_tokens=max_tokens,
        brokers=tuple(one.strip() for one in given.split(",")) if given else (),
        model=model if given else None,
    )
    context.exit(_run(plan, as_json=as_json))


def _run(plan: ChaosPlan, *, as_json: bool) -> int:
    errors = Console(stderr=True)
    errors.print(f"seed {plan.seed}", style="dim")
    with Interrupts() as interrupts, _shown(errors, plan.duration_s) as shown:
        report = run(plan, shown, lambda: interrupts.count)
    if report is None:
        return EXIT_INTERRUPTED
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        output = Console()
        Console(width=None if output.is_terminal else _PIPE_WIDTH).print(report.render())
    if report.was_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if report.problems() else EXIT_OK


class _Shown:
    """Each fault as a line, and how far it is below them."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def phase(self, words: str) -> None:
        """Show what is being done now."""
        self._progress.console.print(f"{words} …", style="dim")

    def struck(self, struck: Struck) -> None:
        """Show a fault."""
        fault = struck.fault
        lasts = f" for {fault.lasts_s:.1f} s" if fault.lasts_s else ""
        self._progress.console.print(
            f"{struck.at_s:6.1f} s  {fault.kind.value} {struck.victim}{lasts}, {struck.open_requests} open on it"
        )

    def progress(self, at_s: float, judge: Judge, faults_left: int) -> None:
        """Show how far it is."""
        words = f"{len(judge.open)} open, {judge.answered} answered, {judge.lost} lost, {faults_left} faults left"
        self._progress.update(self._task, completed=at_s, description=words)


@contextlib.contextmanager
def _shown(console: Console, duration_s: float) -> Generator[_Shown]:
    columns = (BarColumn(), TextColumn("{task.completed:.0f} of {task.total:.0f} s"), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Shown(progress, progress.add_task("", total=duration_s))
