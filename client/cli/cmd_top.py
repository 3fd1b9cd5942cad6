"""`zmqrt top`: a live view of the fleet, to be left open all day."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
import msgspec

from ...protocol.errors import ConnectError
from ...protocol.settings import options
from ..config import ClientSettings
from ..top.brokers import EVERY_S, WatchedBrokers
from ..top.fleet import BrokerView, merge, snapshots
from ..top.history import FleetHistory
from ..top.view import once as once_view
from .stdio import data, is_terminal
from .text import PIPE_WIDTH, screen


@click.command(
    help="Watch the fleet live: nodes, devices, models, slow requests, events.",
    epilog="Keys are listed by `?`. One broker or several may be given with --broker; each is asked for its status "
    "once a second, which costs it next to nothing. Without a terminal the picture is printed once.",
)
@click.option("--once", is_flag=True, help="Print the picture once, and leave.")
@click.option("--json", "as_json", is_flag=True, help="Print the data as a line of JSON a second (with --once: one).")
@options(ClientSettings)
def command(settings: ClientSettings, once: bool, as_json: bool) -> None:
    """Show the brokers in the form that was asked for."""
    is_shown = not (as_json or once) and is_terminal() and sys.stdin.isatty()
    with WatchedBrokers(settings, waits=not is_shown) as brokers:
        if is_shown:
            from ..top.app import Top
            from ..top.keyboard import open_keyboard

            Top(brokers, screen(), open_keyboard()).run()
        else:
            _print(brokers, goes_on=as_json and not once, as_json=as_json)


def _print(brokers: WatchedBrokers, *, goes_on: bool, as_json: bool) -> None:
    history = FleetHistory()
    views, now = brokers.look(), time.time()
    if not snapshots(views):
        raise ConnectError("; ".join(view.problem or f"{view.endpoint}: it has not answered yet" for view in views))
    history.fold(views, now)
    if not as_json:
        console = screen(pipe_width=PIPE_WIDTH)
        console.print(once_view(merge(views, history.outages.events()), history, console.width))
        return
    data(_as_data(views, history, now))
    while goes_on:
        time.sleep(EVERY_S)
        views, now = brokers.look(), time.time()
        history.fold(views, now)
        data(_as_data(views, history, now))


def _as_data(views: list[BrokerView], history: FleetHistory, now: float) -> dict[str, Any]:
    return {
        "at": now,
        "brokers": [msgspec.to_builtins(view) for view in views],
        "broker_events": [
            {"endpoint": happened.endpoint, **msgspec.to_builtins(happened.event)}
            for happened in history.outages.events()
        ],
        "tokens_per_s": history.tokens_per_s,
        "first_token": {"p50_s": history.first_token.median_s, "p99_s": history.first_token.p99_s},
        "answer": {"p50_s": history.duration.median_s, "p99_s": history.duration.p99_s},
    }
