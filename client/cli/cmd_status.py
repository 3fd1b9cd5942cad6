"""`zmqrt status`: the fleet in one glance, for people and (--json) for programs. `zmqrt top` goes on showing it."""

from __future__ import annotations

import click
import msgspec

from ...protocol.settings import options
from ..config import ClientSettings
from ..sync import Client
from .fleet_view import fleet_view
from .stdio import data
from .text import PIPE_WIDTH, screen


@click.command(help="Show nodes and devices: health, load, what they are doing.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole snapshot as one line of JSON.")
@options(ClientSettings)
def command(settings: ClientSettings, as_json: bool) -> None:
    """Ask the broker once."""
    with Client.from_settings(settings, name="zmqrt status") as client:
        snapshot = client.status()
    if as_json:
        data(msgspec.to_builtins(snapshot))
    else:
        screen(pipe_width=PIPE_WIDTH).print(fleet_view(snapshot))
