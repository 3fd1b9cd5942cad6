"""Standard streams that neither lose nor choke on a character, and questions about terminals."""

from __future__ import annotations

import io
import os
import sys

import click


def prepare_stdio() -> None:
    """Make the streams UTF-8 on Windows, and let what a terminal cannot show become a question mark everywhere."""
    encoding = "utf-8" if sys.platform == "win32" else None
    for stream in (sys.stdout, sys.stderr):
        _reconfigure(stream, encoding)
    if sys.platform == "win32":
        _reconfigure(sys.stdin, "utf-8-sig")


def _reconfigure(stream: object, encoding: str | None) -> None:
    if isinstance(stream, io.TextIOWrapper):  # a test may have put something else there
        stream.reconfigure(encoding=encoding, errors="replace")


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
    # Bytes, so that what is no UTF-8 still arrives, marked, in every locale.
    text = sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    return text.removesuffix("\n").removesuffix("\r")
