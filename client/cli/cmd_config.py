"""`zmqrt config`: a settings file to begin with, and what is in force."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from rich.table import Table

from ...protocol.errors import ZmqrtError
from ...protocol.settings import (
    DEFAULT,
    FILE_NAME,
    SHARED_TABLE,
    CommonSettings,
    EffectiveValue,
    Setting,
    known_roles,
    resolve,
    settings_of,
)
from .stdio import data, note
from .text import PIPE_WIDTH, screen


@click.group(help="Write a settings file, or show each setting and where it comes from.")
def command() -> None:
    """Group `init` and `show`."""


@command.command(help="Write a commented settings file that changes nothing yet.")
@click.argument("path", type=click.Path(path_type=Path), default=Path(FILE_NAME))
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
def init(path: Path, force: bool) -> None:
    """Write the template; - prints it."""
    text = settings_template(known_roles())
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
    for warning in dict.fromkeys(warning for found in resolved.values() for warning in found.warnings):
        note(f"warning: {warning}")
    if as_json:
        data({name: list(map(_plain, found.origins)) for name, found in resolved.items()})
        return
    for name, found in resolved.items():
        screen(pipe_width=PIPE_WIDTH).print(_table(name, found.origins))


def _plain(setting: EffectiveValue) -> dict[str, str]:
    return {"name": setting.name, "value": setting.shown, "origin": setting.origin}


def _table(role: str, settings: tuple[EffectiveValue, ...]) -> Table:
    table = Table("setting", "value", "from", title=f"[{role}]", title_justify="left", box=None, pad_edge=False)
    for setting in settings:
        table.add_row(setting.name, setting.shown, setting.origin, style="dim" if setting.origin == DEFAULT else None)
    return table


def settings_template(roles: Mapping[str, type[CommonSettings]]) -> str:
    """Return a settings file that changes nothing: every key, commented out, at its default."""
    lines = [
        "# Settings of zmqrt. Remove the # before a key to set it.",
        "# Stronger than this file: .env in the working directory, then the environment, then flags.",
    ]
    for table, settings in settings_by_table(roles).items():
        shared = ["# For every role that has the key; a role's own table wins."] if table == SHARED_TABLE else []
        lines += ["", *shared, f"[{table}]", *(line for setting in settings for line in _commented(setting))]
    return "\n".join(lines) + "\n"


def settings_by_table(roles: Mapping[str, type[CommonSettings]]) -> dict[str, list[Setting]]:
    """Return what stands in each table of the file: what several roles have, then what is a role's own.

    A role's own is also a shared name whose meaning or default differs there. What is deprecated stands nowhere.
    """
    shared = {setting.name: setting for setting in settings_of(CommonSettings)}
    seen: set[str] = set()
    for setting in (setting for cls in roles.values() for setting in settings_of(cls)):
        if setting.name in seen:
            shared.setdefault(setting.name, setting)
        seen.add(setting.name)
    common = {_meaning(setting) for setting in shared.values()}
    tables = {SHARED_TABLE: [*shared.values()]}
    tables |= {role: [own for own in settings_of(cls) if _meaning(own) not in common] for role, cls in roles.items()}
    return {name: [setting for setting in table if not setting.declared.deprecated] for name, table in tables.items()}


def _meaning(setting: Setting) -> tuple[str, str, object]:
    return setting.name, setting.declared.help, setting.default


def _commented(setting: Setting) -> Iterator[str]:
    yield ""
    yield f"# {setting.declared.help} ({', '.join(setting.env_names[:1] + setting.declared.env)})"
    yield f"# {setting.name} = {_toml_value(setting)}{'' if setting.default is not None else '  # not set by default'}"


def _toml_value(setting: Setting) -> str:
    if setting.default is None:
        return json.dumps(setting.metavar)
    if setting.type.is_list:
        return json.dumps(setting.default)
    shown = setting.type.show(setting.default)
    is_plain = isinstance(setting.default, int | float) and setting.type.metavar in ("", "N", "NUMBER")
    return shown if is_plain else json.dumps(shown, ensure_ascii=False)
