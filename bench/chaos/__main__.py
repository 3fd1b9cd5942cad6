"""Break a fleet under load and judge every answer: `make chaos`, or `PYTHONPATH=bench python -m chaos`."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from zmqrt.client.cli.interrupts import Interrupts
from zmqrt.client.cli.main import run as run_command
from zmqrt.client.cli.screen import screen
from zmqrt.client.cli.stdio import data
from zmqrt.protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ZmqrtError

from .fleet import FleetPlan, Struck
from .judge import Judge
from .load import LoadPlan
from .plan import Blow, FaultKind, usual_counts
from .report import Demands
from .run import ChaosPlan, run

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


_EPILOG: Final = """\b
  make chaos                                      a minute of kill -9, SIGSTOP and partitions under 200 streams
  make chaos ARGS="--model smollm2-135m"          three kills under four streams of a real model
  make chaos ARGS="--fault broker-kill=5 --seed 1"
  make chaos ARGS="--broker tcp://broker-1:7555"  load and judge a fleet that you break yourself
"""


@click.command(
    help="Break a fleet under load, and judge every answer.",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
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
    "[default: a mix of all, 39 a minute; with --model worker-kill=3]",
)
@click.option("--streams", type=click.IntRange(0, 4000), help="Open at a time [default: 200; with --model 4].")
@click.option("--unary", type=click.IntRange(0, 4000), help="Requests beside them [default: 20; with --model 0].")
@click.option("--clients", type=click.IntRange(1, 64), default=4, show_default=True, help="Connections that ask.")
@click.option("--nodes", type=click.IntRange(1, 64), help="Workers to start [default: 4; with --model 2].")
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
def command(context: click.Context, /, *, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - the flags of `Wishes`
    """Exit with 1 if an answer is lost, doubled or wrong. Everything after -- goes to the workers."""
    if sys.platform == "win32":
        raise ZmqrtError("chaos needs signals that Windows does not have; run it on Linux or macOS")
    context.exit(_run(make_plan(Wishes(**given)), as_json=as_json))


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the flags said; None = not said."""

    duration_s: float
    seed: int | None
    faults: dict[FaultKind, int]
    streams: int | None
    unary: int | None
    clients: int
    nodes: int | None
    brokers: int
    model: str | None
    max_tokens: int
    step_ms: float
    heartbeat_s: float
    eviction_s: float
    min_resumes: int | None
    min_fenced: int | None
    given: str | None
    keys: Path | None
    insecure: bool
    worker_arguments: tuple[str, ...]

    @property
    def is_real(self) -> bool:
        """Whether a real model is started: it needs a load that a CPU can bear."""
        return self.model is not None and self.given is None


def make_plan(wishes: Wishes) -> ChaosPlan:
    """Fill in what was not said. Raises UsageError."""
    streams, unary, nodes = (
        usual if said is None else said
        for said, usual in zip(
            (wishes.streams, wishes.unary, wishes.nodes), (4, 0, 2) if wishes.is_real else (200, 20, 4), strict=True
        )
    )
    _refuse(wishes, streams + unary)
    seed = secrets.randbelow(10**6) if wishes.seed is None else wishes.seed
    usual_faults = {FaultKind.WORKER_KILL: 3} if wishes.is_real else usual_counts(wishes.duration_s)
    faults = {} if wishes.given else wishes.faults or usual_faults
    lasts = any(kind.blow in (Blow.FREEZE, Blow.PARTITION) and count for kind, count in faults.items())
    is_usual = bool(faults) and not wishes.faults
    return ChaosPlan(
        seed=seed,
        duration_s=wishes.duration_s,
        load=LoadPlan(
            streams=streams,
            unary=unary,
            clients=wishes.clients,
            timeout_s=_TIMEOUT_S,
            seed=seed,
            keys=wishes.keys,
            insecure=wishes.insecure,
        ),
        fleet=FleetPlan(
            keys=wishes.keys,
            insecure=wishes.insecure,
            brokers=wishes.brokers,
            nodes=nodes,
            heartbeat_s=wishes.heartbeat_s,
            eviction_s=wishes.eviction_s,
            worker_arguments=(*_worker(wishes), *wishes.worker_arguments),
            has_partitions=bool(faults.get(FaultKind.WORKER_PARTITION)),
        ),
        faults=faults,
        demands=Demands(
            resumes=streams if wishes.min_resumes is None and is_usual and not wishes.is_real else wishes.min_resumes,
            fenced=int(lasts) if wishes.min_fenced is None else wishes.min_fenced,
        ),
        max_tokens=wishes.max_tokens,
        brokers=tuple(one.strip() for one in wishes.given.split(",")) if wishes.given else (),
        model=wishes.model if wishes.given else None,
    )


def _refuse(wishes: Wishes, at_once: int) -> None:
    """Refuse what contradicts itself."""
    if wishes.eviction_s <= wishes.heartbeat_s:
        raise click.UsageError("--node-eviction-timeout must be above --heartbeat-interval")
    if not at_once:
        raise click.UsageError("nothing to ask: --streams and --unary are both 0")
    if wishes.given and (wishes.faults or wishes.worker_arguments):
        raise click.UsageError("--broker is for a fleet that runs already: you break it; leave out --fault and --")
    if (wishes.keys or wishes.insecure) and not wishes.given:
        raise click.UsageError("--keys and --insecure are for --broker; what is started here is on loopback")


def _worker(wishes: Wishes) -> tuple[str, ...]:
    if wishes.model:
        return ("--model", wishes.model, "--device", "cpu", "--dtype", "float32", "--allow-download")
    pace = f"step_ms={wishes.step_ms}"
    return ("--engine", "mock", "--devices", "0", "--slots", str(_STREAMS_AT_ONCE), "--engine-opt", pace)


def _run(plan: ChaosPlan, *, as_json: bool) -> int:
    errors = screen(stderr=True)
    errors.print(f"seed {plan.seed}", style="dim")
    with Interrupts() as interrupts, _shown(errors, plan.duration_s) as shown:
        report = run(plan, shown, lambda: interrupts.count)
    if report is None:
        return EXIT_INTERRUPTED
    if as_json:
        data(report.to_dict())
    else:
        screen(pipe_width=_PIPE_WIDTH).print(report.render())
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


if __name__ == "__main__":
    sys.exit(run_command(command, "python -m chaos"))
