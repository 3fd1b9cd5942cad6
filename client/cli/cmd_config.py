"""`zmqrt config`: a settings file to begin with, and what is in force."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from ...protocol.errors import ZmqrtError
from ...protocol.settings import EffectiveValue, known_roles, resolve, toml_template
from ...protocol.settings.sources import FILE_NAME
from .screen import PIPE_WIDTH, screen
from .stdio import data, note


@click.group(help="Write a settings file, or show each setting and where it comes from.")
def command() -> None:
    """Group `init` and `show`."""


@command.command(help="Write a commented settings file that changes nothing yet.")
@click.argument("path", type=click.Path(path_type=Path), default=Path(FILE_NAME))
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
def init(path: Path, force: bool) -> None:
    """Write the template; - prints it."""
    text = toml_template(known_roles())
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ZmqrtError(f"{path} is there already; --force overwrites it") from None
    click.echo(f"wrote {path}; every setting stands in it, commented out")


@command.command(help="Show the effective value of each setting, and where it comes from.")
@click.argument("role", required=False)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Settings file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(role: str | None, config: Path | None, as_json: bool) -> None:
    """Show one ROLE, or all."""
    roles = known_roles()
    if role is not None and role not in roles:
        raise click.BadParameter(f"there is no role {role!r}; there are {', '.join(roles)}", param_hint="ROLE")
    resolved = {name: resolve(cls, config=config) for name, cls in roles.items() if role in (None, name)}
    shown = {name: one.origins for name, one in resolved.items()}
    for warning in dict.fromkeys(warning for one in resolved.values() for warning in one.warnings):
        note(f"warning: {warning}")
    if as_json:
        data({name: list(map(_plain, found)) for name, found in shown.items()})
        return
    for name, found in shown.items():
        screen(pipe_width=PIPE_WIDTH).print(_table(name, found))


def _plain(one: EffectiveValue) -> dict[str, str]:
    return {"name": one.name, "value": one.shown, "origin": one.origin}


def _table(role: str, found: tuple[EffectiveValue, ...]) -> Table:
    table = Table("setting", "value", "from", title=f"[{role}]", title_justify="left", box=None, pad_edge=False)
    for one in found:
        table.add_row(one.name, one.shown, one.origin, style="dim" if one.origin == "default" else None)
    return table
