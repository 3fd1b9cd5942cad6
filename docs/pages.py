"""Write the pages that are made from the code: `make docs` runs it, tests/test_docs.py compares."""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import openapi_document

from zmqrt.bridge_http.openai import extras
from zmqrt.broker import nodes as broker_workers
from zmqrt.broker import requests as broker_requests
from zmqrt.client import requests as client_requests
from zmqrt.client.cli.cmd_config import settings_by_table
from zmqrt.protocol.settings import CONFIG_ENV, FILE_NAME, SHARED_TABLE, CommonSettings, Setting, known_roles
from zmqrt.worker import broker_sessions as worker_sessions
from zmqrt.worker import core as worker_core

HERE = Path(__file__).resolve().parent
S = TypeVar("S", bound=enum.Enum)
_FENCE = "```"
_INTRO = """# State machines

Drawn by `make docs` from the tables that the code itself obeys; what each state means stands at the head of its module.
A move that is not in a table cannot happen.
"""


def states_page() -> str:
    """Draw every table."""
    nodes = ((a, b, event.value) for (a, event), b in broker_workers.TRANSITIONS.items())
    requests = (
        (a, b, event.name.lower().replace("_", " "))
        for a, events in broker_requests.TRANSITIONS.items()
        for event, b in events.items()
    )
    parts = [
        _INTRO,
        _section("A node, as a broker sees it", "broker/nodes.py", nodes, broker_workers.NodeState.ACTIVE),
        _section("A request at a broker", "broker/requests.py", requests, broker_requests.RequestState.QUEUED),
        _section("A request at a client", "client/requests.py", _plain(client_requests.MOVES)),
        _section("A node, by itself", "worker/core.py", _plain(worker_core.TRANSITIONS)),
        _section("A broker, as a node sees it", "worker/broker_sessions.py", _plain(worker_sessions.TRANSITIONS)),
    ]
    return "\n".join(parts)


def _plain(table: Mapping[S, Collection[S]]) -> Iterable[tuple[S, S, str]]:
    return ((a, b, "") for a, targets in table.items() for b in sorted(targets, key=list(type(a)).index))


def _section(title: str, module: str, moves: Iterable[tuple[S, S, str]], first: S | None = None) -> str:
    """Draw one table as a diagram; events between the same two states share an arrow."""
    arrows: dict[tuple[S, S], list[str]] = {}
    for a, b, event in moves:
        arrows.setdefault((a, b), []).append(event)
    first = first or next(iter(arrows))[0]
    lines = [f"    [*] --> {first.name}"]
    for (a, b), events in arrows.items():
        label = "<br/>".join(event for event in events if event)
        lines.append(f"    {a.name} --> {b.name}" + (f": {label}" if label else ""))
    diagram = "\n".join([f"{_FENCE}mermaid", "stateDiagram-v2", *lines, _FENCE])
    return f"## {title}\n\n`{module}`\n\n{diagram}\n"


_FIELDS_INTRO = """# Fields of the OpenAI API that are let pass, or refused by name

Made by `make docs` from `bridge_http/openai/extras.py`. What is obeyed stands in [openai.md](openai.md). Other servers
and SDKs send more than that. It is let pass where it asks for nothing that is not done anyway, and is 400 with its name
in `error.param` where the answer would be another one. `null` asks for nothing everywhere. A name that stands in no
table is 400 too, as at OpenAI.
"""


def fields_page() -> str:
    """List every field that is known and not obeyed."""
    aliases = [f"| `{alias}` | `{name}` |" for alias, name in extras.ALIASES.items()]
    parts = [
        _FIELDS_INTRO,
        "## Other names of what is obeyed\n\nThe fields of Ollama's `options` are taken as if they stood beside it.\n",
        "\n".join(["| name | is |", "|---|---|", *aliases, ""]),
        _fields("In every body", extras.EXTRAS),
        _fields("In conversations, otherwise", extras.CHAT_EXTRAS),
        _fields("Where there is no conversation, otherwise", extras.TEXT_EXTRAS),
        _fields("In messages", extras.MESSAGE_EXTRAS),
        _fields("In parts of type text", extras.PART_EXTRAS),
    ]
    return "\n".join(parts)


def _fields(title: str, table: Mapping[str, extras.Extra]) -> str:
    """Write one line for each reason and its values."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, row in table.items():
        lines.setdefault((_let_pass(row), row.why), []).append(f"`{name}`")
    rows = [f"| {', '.join(names)} | {at} | {why} |" for (at, why), names in lines.items()]
    return "\n".join([f"## {title}", "", "| fields | let pass at | since |", "|---|---|---|", *rows, ""])


def _let_pass(row: extras.Extra) -> str:
    if row.at is None:
        return "any value"
    if callable(row.at):
        return row.when
    return ", ".join(f"`{json.dumps(value)}`" for value in row.at) or "`null` alone"


_SETTINGS_INTRO = f"""\
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


def settings_page(roles: Mapping[str, type[CommonSettings]]) -> str:
    """List every setting of every role."""
    tables = settings_by_table(roles)
    parts = [_SETTINGS_INTRO, _settings(tables.pop(SHARED_TABLE))]
    for role, settings in tables.items():
        parts += [f"## {role}\n\nTOML table `[{role}]`.\n", _settings(settings)]
    return "\n".join(parts)


def _settings(settings: Iterable[Setting]) -> str:
    head = ["| setting | flag | environment | default | meaning |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *map(_setting, settings), ""])


def _setting(setting: Setting) -> str:
    names = " ".join(f"`{name}`" for name in setting.env_names[:1] + setting.declared.env)
    flag = setting.flag if setting.type.is_flag else f"{setting.flag} {setting.metavar}".replace("|", "¦")
    shown = setting.show(setting.default)
    meaning = setting.declared.help.replace("|", "\\|")
    return f"| `{setting.name}` | `{flag}` | {names} | {f'`{shown}`' if shown else ''} | {meaning} |"


def openapi_json() -> str:
    """Write the description that bridges serve at /openapi.json."""
    return json.dumps(openapi_document.document(), indent=1, ensure_ascii=False) + "\n"


PAGES = {
    "../bridge_http/static/openapi.json": openapi_json,
    "openai_fields.md": fields_page,
    "settings.md": lambda: settings_page(known_roles()),
    "states.md": states_page,
}
"""File, as seen from here -> what stands in it."""


def main() -> None:
    """Write them all."""
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
