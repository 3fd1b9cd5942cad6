"""`zmqrt status`: the fleet in one glance, for people and (--json) for programs."""

from __future__ import annotations

import json
import time
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.live import Live

from ...protocol.settings import options
from ..config import ClientSettings
from ..sync import Client
from .fleet_view import fleet_view
from .stdio import is_terminal

_EVERY_S: Final = 1.0
_PIPE_WIDTH: Final = 160
"""A pipe has no width; a log file is read on wide screens."""


@click.command(help="Show nodes and devices: health, load, what they are doing.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole snapshot as one line of JSON.")
@click.option("--watch", is_flag=True, help="Go on showing it, once a second, until Ctrl-C.")
@options(ClientSettings)
def command(settings: ClientSettings, as_json: bool, watch: bool) -> None:
    """Ask the broker once, or once a second."""
    console = Console(width=None if is_terminal() else _PIPE_WIDTH)
    with Client.from_settings(settings, name="zmqrt status") as client:
        if not watch:
            snapshot = client.status()
            if as_json:
                click.echo(json.dumps(msgspec.to_builtins(snapshot), ensure_ascii=False))
            else:
                console.print(fleet_view(snapshot))
        elif as_json or not is_terminal():
            _repeat(client, console, as_json=as_json)
        else:
            _live(client, console)


def _repeat(client: Client, console: Console, *, as_json: bool) -> None:
    while True:
        snapshot = client.status()
        if as_json:
            click.echo(json.dumps(msgspec.to_builtins(snapshot), ensure_ascii=False))
        else:
            console.print(fleet_view(snapshot))
        time.sleep(_EVERY_S)


def _live(client: Client, console: Console) -> None:
    with Live(fleet_view(client.status()), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(_EVERY_S)
            live.update(fleet_view(client.status()), refresh=True)
