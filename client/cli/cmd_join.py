"""`zmqrt join`: makes this machine part of a fleet, from one line; every command here knows it from then on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from ...protocol.enrolment import enrol
from ...protocol.join_line import JoinLine, read_line, refuse_expired
from ...protocol.keys import keep_joined
from ...protocol.own_files import read_text
from ...protocol.settings import CONFIG_ENV, FILE_NAME, joined_folder
from .settings_file import set_values
from .stdio import note

_NEXT: Final = {
    "worker": "zmqrt-worker --model NAME",
    "client": "zmqrt infer 'Hello'",
    "admin": "zmqrt top",
    "bridge": "zmqrt-bridge",
}
_TABLES: Final = {"worker": ("worker",), "client": ("client", "bridge"), "admin": ("client",), "bridge": ("bridge",)}
"""Whose settings name the fleet afterwards; what a client may, a bridge may."""


@click.command(
    help="Join a fleet by the line that its operator has sent.", epilog="With - as LINE it is read from standard input."
)
@click.argument("line", metavar="LINE", required=False)
@click.option(
    "--file", "file", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="A file that holds the line."
)
@click.option(
    "--keys",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where keys are kept [default: fleet-keys in the user's settings folder].",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar=CONFIG_ENV,
    help=f"Settings file to write [default: {FILE_NAME} in the user's settings folder].",
)
def command(line: str | None, file: Path | None, directory: Path | None, config: Path | None) -> None:
    """Keep the keys first, then what names them, so that a cut in between leaves nothing half."""
    read = read_line(_given(line, file))
    folder = (directory or joined_folder()).absolute()
    if read.is_once:
        enrol(read, folder)
    else:
        refuse_expired(read)
        keep_joined(folder, read.role, read.peer_keys())
    path = config or Path(click.get_app_dir("zmqrt")) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    set_values(path, {table: {"broker": list(read.brokers), "keys": str(folder)} for table in _TABLES[read.role]})
    _say(read, folder, path)


def _given(line: str | None, file: Path | None) -> str:
    if (line is None) is (file is None):
        raise click.UsageError("give LINE, or --file FILE")
    if file is not None:
        return read_text(file)
    return sys.stdin.read() if line == "-" else line or ""


def _say(line: JoinLine, folder: Path, path: Path) -> None:
    note(f"this machine is {line.name} of the fleet at {', '.join(line.brokers)}: keys in {folder}, settings in {path}")
    note(f"next: {_NEXT[line.role]}")
