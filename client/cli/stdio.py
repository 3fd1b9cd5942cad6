"""Questions about terminals, and the prompt that comes through a pipe."""

from __future__ import annotations

import os
import sys

import click

from ...protocol.own_files import decode


def is_terminal() -> bool:
    """Say whether a person reads standard output."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def read_prompt(given: str | None) -> str:
    """Return the prompt: the argument, or standard input for `-` and for none where something is piped in.

    Raises:
        UsageError: there is none.
    """
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise click.UsageError("no prompt; give it as an argument, or pipe it in and write '-'")
    # Bytes, so that what is no UTF-8 still arrives, marked, in every locale; PowerShell may write UTF-16.
    text = decode(sys.stdin.buffer.read(), "replace")
    return text.removesuffix("\n").removesuffix("\r")
