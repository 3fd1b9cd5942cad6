"""What `zmqrt up` and `zmqrt demo` show: one view that is redrawn on a terminal, a line for each change in a log."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ...protocol.messages import TaskName
from ...protocol.sanitize import readable
from ...protocol.snapshot import Snapshot
from ..config import DEFAULT_BROKER
from .fleet_view import fleet_view
from .stdio import is_terminal
from .supervise import Child, ChildState
from .text import Clean, screen

_STYLES: Final = {
    ChildState.READY: "green",
    ChildState.STARTING: "yellow",
    ChildState.WAITING: "red",
    ChildState.GONE: "dim",
}
_QUESTION: Final = "What is the capital of France?"
_JSON: Final = "application/json; charset=utf-8"
_STEP_PERCENT: Final = 20
"""A log gets a line of progress at every fifth, where a terminal has a bar."""


class LiveDisplay:
    """Redraws one view at the bottom of the terminal; lines scroll by above it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._has_hinted = False

    def show(self, children: Sequence[Child], snapshot: Snapshot | None, hints: Sequence[str]) -> None:
        """Draw the view anew; the hints are printed once, whole lines, so that they can be copied."""
        if hints and not self._has_hinted:
            self._has_hinted = True
            self.say("\n".join([*hints, ""]))
        self._live.update(Clean(live_view(children, snapshot)), refresh=True)

    def say(self, words: str) -> None:
        """Print a line above the view."""
        self._live.console.print(Text(words), soft_wrap=True)

    def clear(self) -> None:
        """Take the view away."""
        self._live.update(Text(), refresh=True)
        self._live.stop()


class LogDisplay:
    """Prints a line for each change; for pipes and files."""

    def __init__(self) -> None:
        self._printed: dict[str, str] = {}
        """The newest line of each process and device."""
        self._has_hinted = False

    def show(self, children: Sequence[Child], snapshot: Snapshot | None, hints: Sequence[str]) -> None:
        """Print what is new."""
        for name, state in states(children, snapshot):
            if self._printed.get(name) != state:
                self._printed[name] = state
                self.say(f"{name}: {state}")
        if hints and not self._has_hinted:
            self._has_hinted = True
            self.say("\n".join(["", *hints, ""]))

    def say(self, words: str) -> None:
        """Print a line."""
        click.echo(readable(words))

    def clear(self) -> None:
        """Leave what has been printed."""


StackDisplay = LiveDisplay | LogDisplay


@contextlib.contextmanager
def open_display() -> Generator[StackDisplay]:
    """Choose what fits standard output."""
    if not is_terminal():
        yield LogDisplay()
        return
    with Live(console=screen(), auto_refresh=False, transient=True, vertical_overflow="visible") as live:
        yield LiveDisplay(live)


def live_view(children: Sequence[Child], snapshot: Snapshot | None) -> RenderableType:
    """Show processes and fleet."""
    parts: list[RenderableType] = [_processes(children)]
    if snapshot is not None:
        parts += [Text(), fleet_view(snapshot)]
    return Group(*parts)


def _processes(children: Iterable[Child]) -> Table:
    table = Table("process", "pid", "state", "where", box=None, pad_edge=False)
    for child in children:
        state = child.state.value if child.state is not ChildState.WAITING else f"restarting ({child.restarts})"
        where = ", ".join(child.endpoints.values())
        table.add_row(child.name, str(child.pid or ""), Text(state, style=_STYLES[child.state]), where)
    return table


def states(children: Iterable[Child], snapshot: Snapshot | None) -> Iterator[tuple[str, str]]:
    """Yield each process and device with its state in words."""
    for child in children:
        where = ", ".join(child.endpoints.values()) if child.state is ChildState.READY else ""
        yield child.name, f"{child.state.value} {where}".rstrip()
    for node in snapshot.nodes if snapshot is not None else ():
        for device in node.devices:
            percent = device.percent // _STEP_PERCENT * _STEP_PERCENT
            doing = device.phase if device.phase == "ready" else f"{device.phase} {percent} %"
            yield f"{node.node_id} {device.id}", doing


class _Try(NamedTuple):
    """A first request for a task: behind `zmqrt`, of a `Client`, over HTTP."""

    words: str
    call: str
    path: str
    body: dict[str, object]
    piped: str = ""


_TRIES: Final[dict[TaskName, _Try]] = {
    "generate": _Try(f'infer{{}} "{_QUESTION}"', f"infer('{_QUESTION}').text", "/infer", {"prompt": _QUESTION}),
    "embed": _Try("embed{} -", "embed('red')[0]", "/v1/embeddings", {"input": "red"}, piped="echo red | "),
    "rerank": _Try(
        'rerank{} "red" "a green car" "a red car"',
        "rerank('red', ['a green car', 'a red car'])",
        "/v1/rerank",
        {"query": "red", "documents": ["a green car", "a red car"]},
    ),
    "classify": _Try('classify{} "I like it"', "classify('I like it')", "/v1/classify", {"input": "I like it"}),
}


def hints(clients: str, http: str | None, keys: Path | None, models: Mapping[TaskName, str]) -> list[str]:
    """Return the lines that a person may paste into another terminal: a command for each task that is served.

    The other ways to ask are shown for the first of them.
    """
    is_usual = clients == DEFAULT_BROKER
    broker = ("" if is_usual else f" --broker {clients}") + (f" --keys {keys}" if keys else "")
    given = ", ".join([*([] if is_usual else [f"'{clients}'"]), *([f"keys='{keys}'"] if keys else [])])
    tries = [(models[task], one) for task, one in _TRIES.items() if task in models]
    lines = ["Try, in another terminal:", *(f"  {one.piped}zmqrt {one.words.format(broker)}" for _, one in tries)]
    if "generate" in models:
        lines.insert(2, f"  zmqrt chat{broker}")
    for model, one in tries[:1]:
        lines.append(f'  python -c "from zmqrt.client import Client; print(Client({given}).{one.call})"')
        if http is not None:
            body = json.dumps(one.body if one.path == "/infer" else {"model": model, **one.body})
            lines.append(f"  curl {http}{one.path} -d '{body}'")
            lines.append(f"  Invoke-RestMethod -Method Post {http}{one.path} -ContentType '{_JSON}' -Body '{body}'")
    if http is not None:
        chat = ", and a chat with it" if "generate" in models else ""
        lines.append(f"Or open {http}/ in a browser: the fleet as it is{chat}.")
    return [*lines, "Ctrl-C finishes what runs and stops; a second one stops at once."]
