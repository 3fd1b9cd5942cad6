"""`zmqrt keys http`: the API keys of a bridge, in its `--api-keys-file`. The bridge reads each change within a second.

A new key is printed once, alone on standard output, and is nowhere afterwards: the file holds its hash.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.table import Table

from ...protocol.api_keys import ApiKey, Limits, digest_of, id_of, moment, read_count, read_moment
from ...protocol.priority import CLASSES
from . import key_file
from .stdio import data, note
from .text import NOTHING, screen

F = TypeVar("F", bound=Callable[..., Any])
_FROM_NOW: Final = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FILE: Final = click.option(
    "--file",
    "path",
    required=True,
    envvar="ZMQRT_API_KEYS_FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The bridge's --api-keys-file; else ZMQRT_API_KEYS_FILE.",
)


def _checked(read: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Refuse a value that the file could not hold, naming its flag."""

    def check(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
        try:
            if given is not None:
                read(given)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        return given

    return check


def moment_of(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    """Read a moment given as a day, a time, or how long from now; return it as files of keys have it."""
    if given is None:
        return None
    if (found := _FROM_NOW.fullmatch(given)) is not None:
        return moment(time.time() + int(found[1]) * _SECONDS[found[2]])
    try:
        return moment(read_moment(given))
    except ValueError:
        raise click.BadParameter("expected a day such as 2027-01-31, or a time from now such as 30d") from None


def _limits(function: F) -> F:
    helps = {
        "rpm": "Most requests in a minute.",
        "tpm": "Most tokens in a minute, of prompts and answers.",
        "concurrency": "Most requests at once.",
        "budget": "Most tokens in a calendar month.",
    }
    for name, text in reversed(helps.items()):
        function = click.option(f"--{name}", metavar="N", callback=_checked(read_count), help=text)(function)
    return function


@click.group(help="API keys of HTTP callers.")
def http() -> None:
    """Hold what can be done with them."""


@http.command(help="Make a key for a tenant and print it, this once.")
@click.argument("tenant")
@_FILE
@click.option("--name", metavar="NAME", help="Whose it is within the tenant; what is counted is counted by it.")
@click.option("--models", metavar="NAME[,NAME]", help="Models that it may ask, such as tiny,llama-*; else all.")
@click.option("--priority", type=click.Choice(CLASSES), help="The highest class of its requests [default: default].")
@click.option("--metrics", type=click.Choice(["all"]), help="Tell it of all tenants in /metrics: for Prometheus.")
@_limits
@click.option("--expires", metavar="WHEN", callback=moment_of, help="A day, a time, or how long from now (30d).")
def add(tenant: str, path: Path, **words: str | None) -> None:
    """Write the hash into the file, and the key to standard output."""
    _add(path, tenant, {name: value for name, value in words.items() if value is not None})


def _add(path: Path, tenant: str, words: Mapping[str, str], change: key_file.Edit = lambda text: text) -> None:
    key = key_file.new_key()
    line = key_file.line_of(tenant, key, words)
    key_file.edit(path, lambda text: key_file.with_line(change(text), line), make=True)
    note(f"key {id_of(digest_of(key.encode()))} of {tenant} is in {path}; keep what follows, it is shown this once:")
    click.echo(key)


@http.command("list", help="Show the keys, what goes for them, and which are revoked or expired.")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(path: Path, as_json: bool) -> None:
    """Print no key: the file holds none."""
    keys = key_file.listed(path)
    now = time.time()
    if as_json:
        data([_facts(key, now) for key in keys])
        return
    table = Table("id", "tenant", "name", "models", "priority", *Limits._fields, "state", box=None, pad_edge=False)
    for key in keys:
        limits = (str(value) if value is not None else NOTHING for value in key.limits)
        state = key.why_not(now).removeprefix("this key ") or _until(key)
        models = ",".join(key.models) or NOTHING
        table.add_row(key.id, key.tenant, key.name or NOTHING, models, key.priority, *limits, state)
    screen().print(table)


@http.command(help="Let a key in no more; its streams end within a second. KEY: its id, or TENANT/NAME.")
@click.argument("key")
@_FILE
def revoke(key: str, path: Path) -> None:
    """Mark its line, so that its holder is told why."""
    found = key_file.find(path, key)
    words = {"revoked": key_file.now_written()}
    key_file.edit(path, partial(key_file.with_words, digest=found.digest, words=words))
    note(f"key {found.id} of {found.tenant} is revoked")


@http.command(help="Make a key that may do what another one may, which expires soon. KEY: its id, or TENANT/NAME.")
@click.argument("key")
@_FILE
@click.option(
    "--overlap", default="1d", show_default=True, callback=moment_of, help="How long the old one still works."
)
def rotate(key: str, path: Path, overlap: str) -> None:
    """Keep the name, and so what has been counted for it."""
    old = key_file.find(path, key)
    words = {"name": old.name, **key_file.words_of(path, old.digest)}
    ends = min(read_moment(overlap), old.expires) if old.expires is not None else read_moment(overlap)
    expire = partial(key_file.with_words, digest=old.digest, words={"expires": moment(ends)})
    _add(path, old.tenant, words, expire)
    note(f"the old key {old.id} works until {moment(ends)}")


def _until(key: ApiKey) -> str:
    return f"until {moment(key.expires)}" if key.expires is not None else "in use"


def _facts(key: ApiKey, now: float) -> dict[str, object]:
    why = key.why_not(now)
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "models": list(key.models),
        "priority": key.priority,
        "sees_all_tenants": key.sees_all_tenants,
        **key.limits._asdict(),
        "tenant_limits": key.tenant_limits._asdict(),
        "expires": moment(key.expires) if key.expires is not None else None,
        "is_let_in": not why,
        "why_not": why,
    }
