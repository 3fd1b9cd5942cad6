"""`zmqrt keys fleet`: who may connect to the brokers of a folder of keys. They read each change within a second.

A line to join by holds a secret key that is nowhere afterwards: the list has its public half.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import click
from rich.table import Table

from ...protocol import authorized_keys as lists
from ...protocol.addresses import check_endpoints
from ...protocol.api_keys import moment, read_moment
from ...protocol.authorized_keys import GROUPS, Group, ListedKey, Principal
from ...protocol.errors import ConfigurationError
from ...protocol.join_line import LineRole, write_line
from ...protocol.keys import Z85_KEY, load_server, new_pair
from .http_keys import moment_of
from .stdio import data, note
from .text import NOTHING, screen

F = TypeVar("F", bound=Callable[..., Any])
_ROLES: Final[tuple[LineRole, ...]] = get_args(LineRole)
_PORTS: Final = {"workers": 7556, "clients": 7555}
_FOLDER: Final = click.option(
    "--keys",
    "directory",
    required=True,
    envvar="ZMQRT_KEYS",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    metavar="DIR",
    help="The broker's folder of keys; else ZMQRT_KEYS.",
)
_EXPIRES: Final = click.option(
    "--expires", metavar="WHEN", callback=moment_of, help="A day, a time, or how long from now (24h)."
)


@click.group(help="Keys of the machines of a fleet.")
def fleet() -> None:
    """Hold what can be done with them."""


@fleet.command(help="Make a key of its own for a machine, and print the line that it joins by, this once.")
@click.argument("role", type=click.Choice(_ROLES))
@_FOLDER
@click.option("--name", metavar="NAME", help="Who it is in logs and for the broker [default: its role and a number].")
@click.option("--address", "addresses", multiple=True, metavar="HOST[:PORT]", help="Where it finds the broker.")
@click.option("--once", is_flag=True, help="Good for one machine, which makes its own key by it.")
@_EXPIRES
def invite(
    role: LineRole, directory: Path, name: str | None, addresses: tuple[str, ...], expires: str | None, *, once: bool
) -> None:
    """List the public half; the line with the secret one goes to standard output."""
    group = group_of(role)
    brokers = tuple(endpoint_of(address, group) for address in addresses)
    if not brokers:
        raise click.UsageError("--address is missing: where other machines find the broker, such as 10.0.0.5")
    pair = new_pair()
    name = name or f"{role}-{pair.public[:4].hex()}"
    ends = read_moment(expires) if expires is not None else None
    line = write_line(role, brokers, load_server(directory).public, pair.secret, name, ends, is_once=once)
    lists.add(directory, group, lists.line_of(pair.public, principal_of(role, name), ends, is_once=once))
    until = f" until {expires}" if expires is not None else ""
    how = "zmqrt-worker --join" if role == "worker" else "zmqrt join"
    note(f"{name} may join{until}: {how} LINE, where LINE is what follows; it is a secret, shown this once:")
    click.echo(line)


@fleet.command(help="List a key that another machine has made. KEY: its public half.")
@click.argument("role", type=click.Choice(_ROLES))
@click.argument("key")
@click.argument("name")
@_FOLDER
@_EXPIRES
def add(role: LineRole, key: str, name: str, directory: Path, expires: str | None) -> None:
    """Add its line."""
    if not Z85_KEY.fullmatch(key):
        raise click.BadParameter("expected the 40 characters of a public.key", param_hint="KEY")
    ends = read_moment(expires) if expires is not None else None
    lists.add(directory, group_of(role), lists.line_of(key.encode(), principal_of(role, name), ends))
    note(f"{name} may connect")


@fleet.command("list", help="Show who may connect, and whose key is revoked or has expired.")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(directory: Path, as_json: bool) -> None:
    """Print both lists; the keys there are public."""
    keys = list(_all_keys(directory))
    now = time.time()
    if as_json:
        data([_facts(group, key, now) for group, key in keys])
        return
    table = Table("id", "name", "connects to", "rights", "state", box=None, pad_edge=False)
    for group, key in keys:
        table.add_row(key.id, key.principal.name, f"{group}' port", _rights(key) or NOTHING, _state(key, now))
    screen().print(table)


@fleet.command(help="Let keys in no more; what they have open is ended within a second. KEY: a name, id or public key.")
@click.argument("key")
@_FOLDER
def revoke(key: str, directory: Path) -> None:
    """Mark their lines, so that whoever is refused is told why."""
    found = _find(directory, key)
    for group, listed in found:
        lists.mark(directory, group, listed.public, {"revoked": moment(time.time())})
        note(f"key {listed.id} of {listed.principal.name} is revoked")


@fleet.command(help="Make a new line for a machine, whose old key expires soon. KEY: a name, id or public key.")
@click.argument("key")
@_FOLDER
@click.option("--address", "addresses", multiple=True, required=True, metavar="HOST[:PORT]", help="As of invite.")
@click.option(
    "--overlap", default="1d", show_default=True, callback=moment_of, help="How long the old one still works."
)
def rotate(key: str, directory: Path, addresses: tuple[str, ...], overlap: str) -> None:
    """Keep name and rights; the new key lasts."""
    found = _find(directory, key)
    if len(found) > 1:
        ids = ", ".join(listed.id for _, listed in found)
        raise ConfigurationError(f"{key} means {len(found)} keys: {ids}; give the id of one")
    (group, old), pair = found[0], new_pair()
    brokers = tuple(endpoint_of(address, group) for address in addresses)
    server, name = load_server(directory).public, old.principal.name
    line = write_line(_role_of(group, old), brokers, server, pair.secret, name, None)
    ends = moment(min(read_moment(overlap), old.expires if old.expires is not None else read_moment(overlap)))
    added = lists.line_of(pair.public, old.principal, None)
    change = partial(lists.marked, public=old.public, said={"expires": ends})
    lists.edit(directory, group, lambda text: lists.with_line(change(text), added))
    note(f"the old key {old.id} of {name} works until {ends}; the new line, shown this once:")
    click.echo(line)


def group_of(role: LineRole) -> Group:
    """Return the list that a role's keys stand on."""
    return "workers" if role == "worker" else "clients"


def principal_of(role: LineRole, name: str) -> Principal:
    """Return whom a line of a role stands for."""
    return Principal(name, is_admin=role == "admin", is_bridge=role == "bridge")


def endpoint_of(address: str, group: Group) -> str:
    """Read HOST, HOST:PORT or an endpoint; the port of a group is the usual one. Raises click.BadParameter."""
    endpoint = address if "://" in address else f"tcp://{address}"
    host, port = endpoint.partition("://")[2], _PORTS[group]
    if endpoint.startswith("tcp://") and ((":" not in host) or host.endswith("]")):
        endpoint = f"{endpoint}:{port}"
    try:
        check_endpoints([endpoint])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--address") from None
    return endpoint


def _all_keys(directory: Path) -> Iterator[tuple[Group, ListedKey]]:
    for group in GROUPS:
        for key in lists.load_list(directory, group).values():
            yield group, key


def _find(directory: Path, wanted: str) -> list[tuple[Group, ListedKey]]:
    """Find keys that are not revoked. Raises ConfigurationError."""
    named = [pair for pair in _all_keys(directory) if wanted in _names_of(pair[1])]
    alive = [pair for pair in named if not pair[1].revoked]
    if not alive:
        why = "is revoked already" if named else "is not listed; `zmqrt keys fleet list` shows names and ids"
        raise ConfigurationError(f"key {wanted} {why}")
    return alive


def _names_of(key: ListedKey) -> tuple[str, str, str]:
    return key.principal.name, key.id, key.public.decode()


def _role_of(group: Group, key: ListedKey) -> LineRole:
    if group == "workers":
        return "worker"
    return "admin" if key.principal.is_admin else "bridge" if key.principal.is_bridge else "client"


def _rights(key: ListedKey) -> str:
    return " ".join(
        name for name, has in (("admin", key.principal.is_admin), ("bridge", key.principal.is_bridge)) if has
    )


def _state(key: ListedKey, now: float) -> str:
    if why := key.why_not(now):
        return why.removeprefix(f"the key of {key.principal.name} was ").removeprefix(
            f"the key of {key.principal.name} "
        )
    state = "good once" if key.is_once else "in use"
    return f"{state}, until {moment(key.expires)}" if key.expires is not None else state


def _facts(group: Group, key: ListedKey, now: float) -> dict[str, object]:
    why = key.why_not(now)
    return {
        "id": key.id,
        "public": key.public.decode(),
        "name": key.principal.name,
        "group": group,
        "is_admin": key.principal.is_admin,
        "is_bridge": key.principal.is_bridge,
        "expires": moment(key.expires) if key.expires is not None else None,
        "is_let_in": not why,
        "why_not": why,
    }
