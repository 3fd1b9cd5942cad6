"""Write the pages that are made from the code: `make docs` runs it, tests/test_docs.py compares."""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from zmqrt.bridge_http.openai import extras
from zmqrt.broker import nodes as broker_workers
from zmqrt.broker import requests as broker_requests
from zmqrt.client import requests as client_requests
from zmqrt.protocol import settings
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


PAGES = {
    "openai_fields.md": fields_page,
    "settings.md": lambda: settings.markdown_table(settings.known_roles()),
    "states.md": states_page,
}
"""File -> what stands in it."""


def main() -> None:
    """Write them all."""
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
