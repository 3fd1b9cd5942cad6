"""Settings as text for people: the commented TOML file of `zmqrt config init`, and the table in the documentation.

Both come from the declarations alone, so they cannot fall behind the code.
"""

import json
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from .declare import CommonSettings, Setting, settings_of
from .sources import FILE_NAME, SHARED_TABLE
from .variables import CONFIG_ENV, Roles

_PREAMBLE: Final = f"""\
# Settings

Made from the code by `make docs`; do not edit.

Defaults < TOML file (`--config`, `{CONFIG_ENV}`, `./{FILE_NAME}`, `{FILE_NAME}` in the user's settings folder) <
`.env` in the working directory < environment < flags. A duration is written `10s`, `250ms` or `2m`, a size `64MiB`.
White space and one pair of equal quotes around a value are taken off. Files are UTF-8, or UTF-16 with its mark.

`zmqrt config show` tells what is in force, where it comes from, and what was ignored.

## Names of others

* An unknown key in a file, or a name in `.env` with the prefix `ZMQRT_`, is an error, exit code 78. In the environment
  it is a warning: Kubernetes puts `ZMQRT_PORT=tcp://10.0.0.1:8000` and the like there for a Service of that name.
* A historic environment name works bare and with the prefix `ZMQRT_`. Bare names belong to everybody: a value that
  cannot be ours (`LOG_LEVEL=WARN`, `HOST=x86_64-conda-linux-gnu`, `API_KEYS=sk-abc`, `MODEL_NAME=gpt-4o`) is ignored,
  with a warning. Those that many programs use (`HOST`, `PORT`, `LOG_LEVEL`, `MODEL_NAME`, `MODEL_PATH`, `NODE_ID`,
  `MAX_RETRIES`) count in `.env` only beside a name of zmqrt's own, or beside a `zmqrt.toml`.
* Commands that are clients (`infer`, `status`, …) read no bare name at all.

## Whose files

`.env` and `{FILE_NAME}` decide what a program does, so one that another user owns (root excepted), or may write, is
refused, exit code 78; a file named by `--config` or `{CONFIG_ENV}` may have any owner. Who started the program by sudo
counts as yourself; root's group, your private one and one without a name let nobody else in; and on a file system
without modes (a drive of Windows in WSL, a share) only the owner counts. What the environment says as well is not asked
of `.env`: Docker Compose and systemd hand such a file on by themselves. Which files of the working directory count is
said once, at the start. `insecure` counts only as a flag, in the environment, or in a file of your own.

## Several roles

In the TOML table `[{SHARED_TABLE}]`, or in a role's own table, which wins.
"""


def toml_template(roles: Roles) -> str:
    """Return a settings file that changes nothing: every key, commented out, at its default."""
    lines = [
        "# Settings of zmqrt. Remove the # before a key to set it.",
        "# Stronger than this file: .env in the working directory, then the environment, then flags.",
        "",
        "# For every role that has the key; a role's own table wins.",
        f"[{SHARED_TABLE}]",
    ]
    shared = _shared(roles)
    for one in shared:
        lines += _commented(one)
    for role, cls in roles.items():
        lines += ["", f"[{role}]"]
        for one in _own(cls, shared):
            lines += _commented(one)
    return "\n".join(lines) + "\n"


def markdown_table(roles: Roles) -> str:
    """Return the page that lists every setting of every role."""
    shared = _shared(roles)
    parts = [_PREAMBLE, _table(shared)]
    for role, cls in roles.items():
        parts += [f"## {role}\n\nTOML table `[{role}]`.\n", _table(_own(cls, shared))]
    return "\n".join(parts)


def _shared(roles: Roles) -> list[Setting]:
    """Return the settings that more than one role has, the common ones first."""
    found = {one.name: one for one in settings_of(CommonSettings)}
    seen: set[str] = set()
    for cls in roles.values():
        for one in settings_of(cls):
            if one.name in seen:
                found.setdefault(one.name, one)
            seen.add(one.name)
    return [one for one in found.values() if not one.declared.deprecated]


def _own(cls: type[CommonSettings], shared: Iterable[Setting]) -> list[Setting]:
    """Return what stands under a role: also a shared name whose meaning or default differs here."""
    common = {(one.name, one.declared.help, one.default) for one in shared}
    own = (one for one in settings_of(cls) if (one.name, one.declared.help, one.default) not in common)
    return [one for one in own if not one.declared.deprecated]


def _commented(one: Setting) -> Iterator[str]:
    yield ""
    yield f"# {one.declared.help} ({', '.join(one.env_names[:1] + one.declared.env)})"
    note = "  # not set by default" if one.default is None else ""
    yield f"# {one.name} = {_toml_value(one)}{note}"


def _toml_value(one: Setting) -> str:
    if one.default is None:
        return json.dumps(one.metavar)
    if one.value_type.is_list:
        return json.dumps(list(typing.cast("Sequence[str]", one.default)))
    if one.value_type.is_flag or (isinstance(one.default, (int, float)) and one.value_type.metavar in ("N", "NUMBER")):
        return one.value_type.show(one.default)
    return json.dumps(one.value_type.show(one.default), ensure_ascii=False)


def _table(settings: Iterable[Setting]) -> str:
    rows = [
        "| setting | flag | environment | default | meaning |",
        "| --- | --- | --- | --- | --- |",
        *map(_row, settings),
    ]
    return "\n".join(rows) + "\n"


def _row(one: Setting) -> str:
    names = " ".join(f"`{name}`" for name in one.env_names[:1] + one.declared.env)
    flag = one.flag if one.value_type.is_flag else f"{one.flag} {one.metavar}"
    shown = one.show(one.default)
    meaning = one.declared.help.replace("|", "\\|")
    return f"| `{one.name}` | `{flag.replace('|', '¦')}` | {names} | {f'`{shown}`' if shown else ''} | {meaning} |"
