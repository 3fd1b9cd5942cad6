"""`--print-join`: makes a broker that other machines can join with one line each, and prints the lines.

The lines hold the pairs `worker/` and `client/` of the folder of keys, so those of each start are the same. Who gives
each machine a key of its own, which can be revoked alone, makes lines with `zmqrt keys fleet invite`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from ..protocol.addresses import join_host, split_tcp
from ..protocol.authorized_keys import Group, load_allowed
from ..protocol.errors import ConfigurationError
from ..protocol.join_line import LineRole, write_line
from ..protocol.keys import generate, load_peer
from ..protocol.settings import is_named, joined_folder
from .config import BrokerSettings

_ROLES: Final[tuple[tuple[Group, LineRole, str], ...]] = (
    ("workers", "worker", "zmqrt-worker --join"),
    ("clients", "client", "zmqrt join"),
)
_ANYWHERE: Final = ("0.0.0.0", "*", "::")  # noqa: S104 - told apart from addresses that others can use
_ELSEWHERE: Final = ("192.0.2.1", 9)
"""An address that is nobody's (RFC 5737): which of ours leads there, a UDP socket knows without sending anything."""


def open_to_others(settings: BrokerSettings) -> BrokerSettings:
    """Return settings with keys, which are made where there are none, and ports that other machines reach."""
    keys = settings.keys or joined_folder()
    if not (keys / "broker" / "secret.key").exists():
        generate(keys)
        click.echo(f"made keys in {keys}", err=True)
    clients, workers = (
        endpoint if is_named(name) else f"tcp://0.0.0.0:{split_tcp(endpoint)[1]}"
        for name, endpoint in (("clients", settings.clients), ("workers", settings.workers))
    )
    return dataclasses.replace(settings, keys=keys, clients=clients, workers=workers)


def show_lines(settings: BrokerSettings, endpoints: Mapping[str, str]) -> None:
    """Print the lines on standard output, and where they lead."""
    assert settings.keys is not None
    host = settings.advertise or _guess(endpoints["workers"])
    lines: dict[str, str] = {}
    for group, role, how in _ROLES:
        try:
            lines[how] = _line(settings.keys, group, role, _reached_at(endpoints[group], host))
        except ConfigurationError as error:
            why = f"no line for {group}: {error}; make one with: zmqrt keys fleet invite {role} --keys {settings.keys}"
            click.echo(why, err=True)
    if settings.log_format == "json":
        click.echo(json.dumps({"event": "join", **{how.split()[0]: line for how, line in lines.items()}}))
        return
    click.echo(f"these lines are secrets; they lead to {host} (--advertise HOST names another):", err=True)
    for how, line in lines.items():
        click.echo(f"{how} {line}")


def _line(keys: Path, group: Group, role: LineRole, broker: str) -> str:
    peer = load_peer(keys, "worker" if role == "worker" else "client")
    principal = load_allowed(keys, group).get(peer.own.public)
    if principal is None:
        raise ConfigurationError(f"the key in {keys / role} is not listed any more")
    return write_line(role, (broker,), peer.server_public, peer.own.secret, principal.name, None)


def _reached_at(endpoint: str, host: str) -> str:
    """Return what others call an endpoint of ours; one address of several is theirs to use as it is."""
    own, port = split_tcp(endpoint)
    return f"tcp://{join_host(host, port)}" if endpoint.startswith("tcp://") and own in _ANYWHERE else endpoint


def _guess(endpoint: str) -> str:
    """Return the address that other machines most likely reach this one by."""
    own = split_tcp(endpoint)[0]
    if not endpoint.startswith("tcp://") or own not in _ANYWHERE:
        return own
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knock:
        knock.connect(_ELSEWHERE)
        return str(knock.getsockname()[0])
    return socket.gethostname()
