"""What commands print, and the prompt that comes through a pipe.

What comes from elsewhere (answers, errors, names) is cleaned before a terminal sees it. An answer that goes to a file
or another program is left as it is, byte for byte: there it moves nothing, and somebody may need it so.
"""

from __future__ import annotations

import json
import os
import sys

import click

from ...protocol.names import as_typed
from ...protocol.own_files import decode
from ...protocol.sanitize import escaped, indented, readable


def is_terminal() -> bool:
    """Say whether a person reads standard output."""
    has_one: bool = getattr(sys.stdout, "isatty", bool)()  # a closed standard output is None
    return has_one and os.environ.get("TERM") != "dumb"


def answer(text: str, *, nl: bool = True) -> None:
    """Print what a model wrote, or a piece of it."""
    if getattr(sys.stdout, "isatty", bool)():
        click.echo(readable(text), nl=nl)
    else:
        click.echo(text, nl=nl, color=True)  # which means: take nothing out of it


def thought(text: str) -> None:
    """Print a piece of what a model thought: beside its answer, never in it."""
    click.secho(readable(text), dim=True, nl=False, err=True)


def note(text: str) -> None:
    """Print a sentence on standard error; more lines of it stand further in, and cannot be taken for another."""
    click.echo(indented(text), err=True)


def data(value: object) -> None:
    """Print a line of JSON for programs, in which nothing can be taken for an order to a terminal."""
    click.echo(escaped(json.dumps(value, ensure_ascii=False)))


def read_prompt(given: str | None) -> str:
    """Return the prompt: the argument, or standard input for `-` and for none where something is piped in.

    Raises:
        UsageError: there is none.
    """
    if given is not None and given != "-":
        return as_typed(given)
    if given is None and sys.stdin.isatty():
        raise click.UsageError("no prompt; give it as an argument, or pipe it in and write '-'")
    # Bytes, so that what is no UTF-8 still arrives, marked, in every locale; PowerShell may write UTF-16.
    text = decode(sys.stdin.buffer.read(), "replace")
    return text.removesuffix("\n").removesuffix("\r")
