"""`zmqrt up`: broker, workers and bridge on this machine until Ctrl-C, and a view of what each is doing."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final, cast

import click

from ...protocol.errors import EXIT_OK
from ...protocol.keys import generate
from ...protocol.settings import duration_type
from .interrupts import Interrupts
from .local_stack import LocalStack, StackPlan, has_bridge
from .stack_view import open_display

_PEOPLE: Final = range(1000, 60_000)
"""User ids that systems give to people; below are daemons, above are containers' and nobody."""
_PORT: Final = click.IntRange(0, 65535)
_duration: Final = duration_type("s", is_whole=False)


def _seconds(_context: click.Context, _parameter: click.Parameter, given: str | None) -> float | None:
    if given is None:
        return None
    try:
        seconds = float(cast("float", _duration.parse(given)))
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise click.BadParameter(f"expected {_duration.expected}, from 0.1s to 24h, not {given!r}")
    return seconds


timeout_option: Final = click.option(
    "--request-timeout",
    "request_timeout_s",
    metavar="DURATION",
    callback=_seconds,
    help="Longest time of a whole answer of /infer, and else without progress [default: 30s].",
)
"""A flag of `demo` too."""


@click.command(help="Run broker, workers and bridge on this machine until Ctrl-C.")
@click.option("--model", metavar="NAME", help="What the workers run: a known name, a directory, a .gguf file …")
@click.option("--engine", metavar="NAME", help="Engine of the workers, or module:factory of your own.")
@click.option("--mock", is_flag=True, help="A toy model on two mock devices: no GPU, no torch, ready in a second.")
@click.option("--nodes", type=click.IntRange(1, 64), default=1, show_default=True, help="Workers to run.")
@click.option("--port", type=_PORT, default=8000, show_default=True, help="For HTTP; 0: all ports are free ones.")
@click.option("--client-port", type=_PORT, help="Of the broker, for clients [default: 7555].")
@click.option("--worker-port", type=_PORT, help="Of the broker, for workers [default: 7556].")
@click.option("--bridge/--no-bridge", default=True, help="Serve HTTP too.")
@timeout_option
@click.option(
    "--keys",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of keys; made when it is not there. For machines with other users.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", hidden=True)
@click.argument("worker_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- WORKER FLAGS]")
@click.pass_context
def command(context: click.Context, /, *, mock: bool, model: str | None, engine: str | None, **given: Any) -> None:  # noqa: ANN401
    """Everything after -- goes to the workers."""
    if mock and engine not in (None, "mock"):
        raise click.UsageError("--mock is --engine mock; leave one of them out")
    engine = "mock" if mock else engine
    named = [*(("--engine", engine) if engine else ()), *(("--model", model) if model else ())]
    plan = make_plan(tuple(named), **given)
    if plan.keys is not None and not (plan.keys / "broker" / "secret.key").exists():
        generate(plan.keys)
        click.echo(f"made keys in {plan.keys}", err=True)
    if plan.keys is None and has_other_users():
        click.echo("other users of this machine can reach what starts here; --keys DIR keeps them out", err=True)
    if given["bridge"] and not plan.has_bridge:
        click.echo("no HTTP bridge: pip install 'zmqrt[bridge]' brings it", err=True)
    context.exit(run(plan))


def make_plan(
    named: tuple[str, ...],
    *,
    nodes: int,
    port: int,
    client_port: int | None,
    worker_port: int | None,
    bridge: bool,
    keys: Path | None,
    request_timeout_s: float | None,
    log_level: str,
    worker_arguments: tuple[str, ...],
) -> StackPlan:
    """Build the plan; a free HTTP port makes the others free too, unless they are named."""
    usual = (7555, 7556) if port else (0, 0)
    return StackPlan(
        http_port=port,
        client_port=usual[0] if client_port is None else client_port,
        worker_port=usual[1] if worker_port is None else worker_port,
        nodes=nodes,
        has_bridge=bridge and has_bridge(),
        worker_arguments=(*named, *worker_arguments),
        keys=keys,
        request_timeout_s=request_timeout_s,
        log_level=log_level,
    )


def has_other_users(processes: Path = Path("/proc")) -> bool:
    """Say whether somebody else works on this machine: a person's process that is not ours (Linux)."""
    if sys.platform != "linux":
        return False
    owners: set[int] = set()
    with contextlib.suppress(OSError):
        for process in processes.iterdir():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                owners.add(process.stat().st_uid if process.name.isdigit() else 0)
    return any(owner in _PEOPLE and owner != os.geteuid() for owner in owners)


def run(plan: StackPlan) -> int:
    """Run a plan until it is interrupted; return the exit code."""
    with Interrupts() as interrupts, open_display() as display, LocalStack(plan, display, interrupts) as stack:
        while not interrupts.count:
            stack.step()
        asked = interrupts.count  # before anybody reads that one more would do something
        display.say("finishing what runs; Ctrl-C again stops at once")
        code = stack.leave(asked)
        display.say("stopped" if code == EXIT_OK else "stopped at once")
        return code
