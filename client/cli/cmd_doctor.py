"""`zmqrt doctor`: what is wrong with this machine or the fleet, and what to do about it."""

from __future__ import annotations

import contextlib
from typing import Final

import click
from rich.text import Text

from ...protocol.sanitize import printable
from ...protocol.settings import is_named, options
from ..config import ClientSettings
from ..doctor.check import Check, exit_code
from ..doctor.rounds import Step, steps
from ..doctor.view import summary, to_dict, views
from .screen import screen
from .stdio import data

_PIPE_WIDTH: Final = 120
_TEACHES: Final = """\b
Each line says ok, note or BAD; below those that are not ok stands what to do.
  note  works, but you may want to know
  BAD   does not work, or is unsafe; the exit code is 1 then, else 0

\b
  zmqrt doctor                                     before the first start
  zmqrt doctor --broker tcp://broker-1:7555        can this machine reach it?
  zmqrt doctor --keys fleet-keys --no-worker       keys, on a client machine
  zmqrt doctor --json | jq '.checks[] | select(.verdict != "ok")'

Several brokers are asked one by one. A broker that nobody named (by flag, variable or file) may be absent.
"""


@click.command(help="Check this machine and the fleet; say what to do where something is not well.", epilog=_TEACHES)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one line of JSON.")
@click.option("--no-worker", is_flag=True, help="Leave out GPUs, torch and models; that part takes some seconds.")
@click.pass_context
@options(ClientSettings)
def command(settings: ClientSettings, context: click.Context, as_json: bool, no_worker: bool) -> None:
    """Go through all parts, and show each as soon as it is known."""
    console = screen(pipe_width=_PIPE_WIDTH)
    checks: list[Check] = []
    for step in steps(settings, are_named=is_named("broker"), with_worker=not no_worker):
        found = _look(step)
        checks += found
        if not as_json:
            console.print(*views(found))
    if as_json:
        data(to_dict(checks))
    else:
        console.print(summary(checks))
    context.exit(exit_code(checks))


def _look(step: Step) -> list[Check]:
    errors = screen(stderr=True)
    waiting = errors.status(Text(printable(f"{step.doing} …"))) if errors.is_terminal else contextlib.nullcontext()
    with waiting:
        return step.look()
