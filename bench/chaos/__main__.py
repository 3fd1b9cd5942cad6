"""Break a fleet under load and judge every answer: `make chaos`, or `PYTHONPATH=bench python -m chaos`."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any, Final

import click

from zmqrt.client.cli.interrupts import Interrupts
from zmqrt.client.cli.main import run as run_command
from zmqrt.client.cli.stdio import data
from zmqrt.client.cli.text import screen
from zmqrt.protocol.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ZmqrtError

from .display import open_display
from .plan import ChaosPlan, FaultKind, usual_counts
from .run import run

_TIMEOUT_S: Final = 30.0
_PIPE_WIDTH: Final = 120
_STREAMS_AT_ONCE: Final = 100


def _read_fault(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[FaultKind, int]:
    """Read KIND=COUNT, some times."""
    counts: dict[FaultKind, int] = {}
    for word in given:
        name, separator, number = word.partition("=")
        try:
            kind, count = FaultKind(name), int(number) if separator else 1
            if count < 0:
                raise ValueError(word)
            counts[kind] = counts.get(kind, 0) + count
        except ValueError:
            known = ", ".join(kind.value for kind in FaultKind)
            raise click.BadParameter(f"{word!r} is not KIND=COUNT with one of: {known}") from None
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
def command(context: click.Context, /, *, as_json: bool, **flags: Any) -> None:  # noqa: ANN401 - see `make_plan`
    """Exit with 1 if an answer is lost, doubled or wrong. Everything after -- goes to the workers."""
    if sys.platform == "win32":
        raise ZmqrtError("chaos needs signals that Windows does not have; run it on Linux or macOS")
    if flags["eviction_s"] <= flags["heartbeat_s"]:
        raise click.UsageError("--node-eviction-timeout must be above --heartbeat-interval")
    if (flags["keys"] or flags["insecure"]) and not flags["given"]:
        raise click.UsageError("--keys and --insecure are for --broker; what is started here is on loopback")
    context.exit(_run(make_plan(**flags), as_json=as_json))


def make_plan(
    *,
    given: str | None,
    model: str | None,
    seed: int | None,
    faults: dict[FaultKind, int],
    streams: int | None,
    unary: int | None,
    nodes: int | None,
    min_resumes: int | None,
    min_fenced: int | None,
    step_ms: float,
    worker_arguments: tuple[str, ...],
    **others: Any,  # noqa: ANN401 - flags that are fields of `ChaosPlan` as they are
) -> ChaosPlan:
    """Fill in what was not given. Raises UsageError."""
    is_real = model is not None and given is None
    usual = (4, 0, 2) if is_real else (200, 20, 4)  # a real model gets a load that a CPU can bear
    streams, unary, nodes = (
        default if flag is None else flag for flag, default in zip((streams, unary, nodes), usual, strict=True)
    )
    if not streams + unary:
        raise click.UsageError("nothing to ask: --streams and --unary are both 0")
    if given and (faults or worker_arguments):
        raise click.UsageError("--broker is for a fleet that runs already: you break it; leave out --fault and --")
    is_usual = not faults and not given
    if is_usual:
        faults = {FaultKind.WORKER_KILL: 3} if is_real else usual_counts(others["duration_s"])
    if min_resumes is None and is_usual and not is_real:
        min_resumes = streams
    if min_fenced is None:
        min_fenced = int(any(kind.lasts and count for kind, count in faults.items()))
    return ChaosPlan(
        seed=secrets.randbelow(10**6) if seed is None else seed,
        faults=faults,
        streams=streams,
        unary=unary,
        nodes=nodes,
        timeout_s=_TIMEOUT_S,
        worker_arguments=(*_engine_flags(model if is_real else None, step_ms), *worker_arguments),
        least_resumes=min_resumes,
        least_fenced=min_fenced,
        endpoints=tuple(endpoint.strip() for endpoint in given.split(",")) if given else (),
        model=model if given else None,
        **others,
    )


def _engine_flags(model: str | None, step_ms: float) -> tuple[str, ...]:
    if model is not None:
        return ("--model", model, "--device", "cpu", "--dtype", "float32", "--allow-download")
    engine = ("--engine", "mock", "--engine-opt", f"step_ms={step_ms}")
    return (*engine, "--devices", "0", "--slots", str(_STREAMS_AT_ONCE))


def _run(plan: ChaosPlan, *, as_json: bool) -> int:
    screen(stderr=True).print(f"seed {plan.seed}", style="dim")
    with Interrupts() as interrupts, open_display(plan.duration_s) as display:
        report = run(plan, display, lambda: interrupts.count)
    if report is None:
        return EXIT_INTERRUPTED
    if as_json:
        data(report.to_dict())
    else:
        screen(pipe_width=_PIPE_WIDTH).print(report.render())
    if report.was_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if report.problems() else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(command, "python -m chaos"))
