"""`zmqrt top`: the fleet as it goes, to be left open all day."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from ...protocol.errors import ConnectError
from ...protocol.settings import options
from ..config import ClientSettings
from ..top.fleet import Sight, merge, snapshots
from ..top.history import History
from ..top.recording import Recorder
from ..top.sources import Brokers, Player, Source
from ..top.view import once as once_view
from .screen import PIPE_WIDTH, screen
from .stdio import data, is_terminal


@click.command(
    help="Watch the fleet live: nodes, devices, models, slow requests, events.",
    epilog="Keys are listed by `?`. One broker or several may be given with --broker; each is asked once a second for "
    "what has changed, which costs it next to nothing. Without a terminal the picture is printed once.",
)
@click.option("--once", is_flag=True, help="Print the picture once, and leave.")
@click.option("--json", "as_json", is_flag=True, help="Print the data as a line of JSON a second (with --once: one).")
@click.option(
    "--record", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write what is seen to FILE."
)
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Show a recording instead of a fleet.",
)
@options(ClientSettings)
def command(settings: ClientSettings, once: bool, as_json: bool, record: Path | None, replay: Path | None) -> None:
    """Show a source in the form that was asked for."""
    if record is not None and replay is not None:
        raise click.UsageError("--record and --replay exclude each other")
    is_shown = not (as_json or once) and is_terminal() and sys.stdin.isatty()
    source: Source = Player(replay) if replay is not None else Brokers(settings, waits=not is_shown)
    with source, contextlib.ExitStack() as stack:
        recorder = stack.enter_context(Recorder(record)) if record is not None else None
        if is_shown:
            from ..top.app import Top
            from ..top.keyboard import open_keyboard

            Top(source, screen(), open_keyboard(), recorder).run()
        else:
            _print(source, recorder, goes_on=as_json and not once, as_json=as_json)


def _print(source: Source, recorder: Recorder | None, *, goes_on: bool, as_json: bool) -> None:
    history = History()
    for number, (sights, at_s) in enumerate(source.looks()):
        if not number and not snapshots(sights) and source.is_live:
            raise ConnectError("; ".join(one.problem for one in sights))
        history.fold(sights, at_s)
        if recorder is not None:
            recorder.write(sights, at_s)
        if as_json:
            data(_as_data(sights, history, at_s))
        else:
            console = screen(pipe_width=PIPE_WIDTH)
            console.print(once_view(merge(sights, history.outages.tell()), history, console.width))
        if not goes_on:
            return


def _as_data(sights: list[Sight], history: History, at_s: float) -> dict[str, Any]:
    return {
        "at": at_s,
        "brokers": [msgspec.to_builtins(one) for one in sights],
        "broker_events": [
            {"endpoint": one.endpoint, **msgspec.to_builtins(one.event)} for one in history.outages.tell()
        ],
        "tokens_per_s": history.tokens_per_s,
        "first_token": {"p50_s": history.first_token.median_s, "p99_s": history.first_token.p99_s},
        "answer": {"p50_s": history.duration.median_s, "p99_s": history.duration.p99_s},
    }
