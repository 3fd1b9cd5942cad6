"""What `zmqrt up` shows: pure, children and a snapshot in, renderables or lines of text out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...protocol.snapshot import Snapshot
from ..config import DEFAULT_BROKER
from .fleet_view import fleet_view
from .supervise import Child, State

_STYLES: Final = {State.READY: "green", State.STARTING: "yellow", State.WAITING: "red", State.GONE: "dim"}
_QUESTION: Final = "What is the capital of France?"
_JSON: Final = "application/json; charset=utf-8"
_STEP_PERCENT: Final = 20
"""A log gets a line of progress at every fifth, where a terminal has a bar."""


def live_view(children: Sequence[Child], snapshot: Snapshot | None) -> RenderableType:
    """Show processes and fleet."""
    parts: list[RenderableType] = [processes(children)]
    if snapshot is not None:
        parts += [Text(), fleet_view(snapshot)]
    return Group(*parts)


def processes(children: Iterable[Child]) -> Table:
    """Show one row for each child."""
    table = Table("process", "pid", "state", "where", box=None, pad_edge=False)
    for child in children:
        where = ", ".join(child.endpoints.values())
        told = child.state.value if child.state is not State.WAITING else f"restarting ({child.restarts})"
        table.add_row(child.name, str(child.pid or ""), Text(told, style=_STYLES[child.state]), where)
    return table


def hints(clients: str, http: str | None, keys: Path | None = None) -> list[str]:
    """Return the lines that a person may paste into another terminal."""
    is_usual = clients == DEFAULT_BROKER
    broker = ("" if is_usual else f" --broker {clients}") + (f" --keys {keys}" if keys else "")
    given = ", ".join([*([] if is_usual else [f"'{clients}'"]), *([f"keys='{keys}'"] if keys else [])])
    lines = [
        "Try, in another terminal:",
        f'  zmqrt infer{broker} "{_QUESTION}"',
        f"  zmqrt chat{broker}",
        f"  python -c \"from zmqrt.client import Client; print(Client({given}).infer('{_QUESTION}').text)\"",
    ]
    if http is not None:
        body = json.dumps({"prompt": _QUESTION})
        lines += [
            f"  curl {http}/infer -d '{body}'",
            f"  Invoke-RestMethod -Method Post {http}/infer -ContentType '{_JSON}' -Body '{body}'",
            f"Or open {http}/ in a browser: the fleet as it is, and a chat with it.",
        ]
    return [*lines, "Ctrl-C finishes what runs and stops; a second one stops at once."]


class Ticker:
    """Turns states into lines for a log: each is told when it changes."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def lines(self, children: Iterable[Child], snapshot: Snapshot | None) -> Iterator[str]:
        """Yield what is new since the last call."""
        for child in children:
            where = ", ".join(child.endpoints.values()) if child.state is State.READY else ""
            yield from self._news(child.name, f"{child.state.value} {where}".rstrip())
        for node in snapshot.nodes if snapshot is not None else ():
            for device in node.devices:
                part = device.percent // _STEP_PERCENT * _STEP_PERCENT
                doing = device.phase if device.phase == "ready" else f"{device.phase} {part} %"
                yield from self._news(f"{node.node_id} {device.id}", doing)

    def _news(self, who: str, what: str) -> Iterator[str]:
        if self._told.get(who) != what:
            self._told[who] = what
            yield f"{who}: {what}"
