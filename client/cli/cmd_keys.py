"""`zmqrt keys`: who may connect, and how much each may ask for. Each kind of key has a group of its own."""

from __future__ import annotations

import click

from .fleet_keys import fleet
from .http_keys import http


@click.group(help="Make, list, revoke and rotate keys.")
def command() -> None:
    """Do nothing but hold the kinds of keys."""


command.add_command(fleet)
command.add_command(http)
