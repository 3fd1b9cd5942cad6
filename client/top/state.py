"""What a person has chosen to see, and what a key changes. Pure: a state and a key in, a state and a command out."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ...protocol.request_trace import RequestTrace
from ...protocol.snapshot import FleetEvent, NodeStatus, RequestStatus
from .fleet import MergedFleet, SourcedEvent, SourcedRequest

_MOST_FILTER_CHARS: Final = 40
_MOST_LINES: Final = 250
"""The longest page: all events that a broker keeps, and some."""
_STEPS: Final = {"up": -1, "k": -1, "down": 1, "j": 1, "page-up": -10, "page-down": 10}
PASTED: Final = "paste:"
"""Begins the name of a key that is a pasted text."""


class Page(enum.Enum):
    """What fills the screen."""

    FLEET = "fleet"
    NODE = "node"
    REQUEST = "request"
    EVENTS = "events"
    MODELS = "models"
    HELP = "help"


class Focus(enum.Enum):
    """Which list the arrows move in."""

    NODES = "nodes"
    REQUESTS = "requests"


SORTS: Final[dict[str, Callable[[NodeStatus], Any]]] = {
    "name": lambda node: (node.node_id, node.worker_uuid),
    "load": lambda node: (-node.load, node.node_id),
    "health": lambda node: (node.health == "active", -node.heartbeat_age_s, node.node_id),
    "tokens": lambda node: (-sum(device.tokens for device in node.devices), node.node_id),
    "memory": lambda node: (-max((device.kv_percent for device in node.devices), default=0), node.node_id),
}
"""By what nodes are sorted; `s` goes through them."""


@dataclass(frozen=True, slots=True)
class DrainNode:
    """Ask for a node to be drained."""

    node_id: str


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """Ask a broker for the trace of a request."""

    endpoint: str
    rid: str


@dataclass(frozen=True, slots=True)
class Quit:
    """Leave."""


TopCommand = DrainNode | ExplainRequest | Quit


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewState:
    """What a person has chosen to see.

    Attributes:
        selected: worker_uuid of the node, rid of the request.
        typing: The filter is being typed.
        draining: Name of the node that `y` would drain.
        message: The last thing that was done or went wrong.
        scroll: First line of a page that is longer than the screen.
    """

    page: Page = Page.FLEET
    focus: Focus = Focus.NODES
    sort: str = "name"
    is_reversed: bool = False
    words: str = ""
    is_typing: bool = False
    is_paused: bool = False
    with_devices: bool | None = None
    selected_node: str = ""
    selected_request: str = ""
    draining: str = ""
    message: str = ""
    scroll: int = 0
    traces: tuple[RequestTrace, ...] = ()


def nodes_of(state: ViewState, fleet: MergedFleet) -> list[NodeStatus]:
    """Return the nodes to show, in their order."""
    words = state.words.lower()

    def names(node: NodeStatus) -> str:
        return " ".join((node.node_id, node.health, node.phase, *node.services)).lower()

    kept = [node for node in fleet.nodes if words in names(node)]
    kept.sort(key=SORTS[state.sort], reverse=state.is_reversed)
    return kept


def requests_of(state: ViewState, fleet: MergedFleet) -> list[SourcedRequest]:
    """Return the requests to show, the oldest first."""
    words = state.words.lower()

    def names(request: RequestStatus) -> str:
        return f"{request.request_id} {request.rid} {request.node} {request.service} {request.phase}".lower()

    return [running for running in fleet.requests if words in names(running.request)]


def events_of(state: ViewState, fleet: MergedFleet) -> list[SourcedEvent]:
    """Return the events to show, the newest first."""
    words = state.words.lower()

    def names(event: FleetEvent) -> str:
        return f"{event.kind} {event.subject} {event.text}".lower()

    return [happened for happened in fleet.events if words in names(happened.event)]


def press(state: ViewState, key: str, fleet: MergedFleet) -> tuple[ViewState, TopCommand | None]:
    """Apply a key."""
    if key == "ctrl-c":
        return state, Quit()
    if key.startswith(PASTED):
        return (_paste(state, key.removeprefix(PASTED)) if state.is_typing else state), None
    if state.is_typing:
        return _type(state, key), None
    if state.draining:
        return _confirm(state, key)
    state = replace(state, message="")
    if key in ("up", "k", "down", "j", "page-up", "page-down", "home", "end"):
        return _move(state, key, fleet), None
    if key == "enter":
        return _open(state, fleet)
    return _command(state, key, fleet)


def _type(state: ViewState, key: str) -> ViewState:
    if key == "enter":
        return replace(state, is_typing=False)
    if key == "escape":
        return replace(state, is_typing=False, words="")
    if key == "backspace":
        return replace(state, words=state.words[:-1])
    if key == "space":
        key = " "
    if len(key) == 1 and key.isprintable() and len(state.words) < _MOST_FILTER_CHARS:
        return replace(state, words=state.words + key)
    return state


def _paste(state: ViewState, text: str) -> ViewState:
    """Append pasted text to the filter; anywhere else it would be a row of commands that nobody meant."""
    words = "".join(letter for letter in text if letter.isprintable())
    return replace(state, words=(state.words + words)[:_MOST_FILTER_CHARS])


def _confirm(state: ViewState, key: str) -> tuple[ViewState, TopCommand | None]:
    node_id = state.draining
    state = replace(state, draining="")
    if key in ("y", "Y"):
        return replace(state, message=f"asking {node_id} to drain …"), DrainNode(node_id)
    return replace(state, message=f"{node_id} is left as it is"), None


_DEVICES: Final[dict[bool | None, tuple[bool | None, str]]] = {
    None: (True, "one row for each device"),
    True: (False, "one row for each node"),
    False: (None, "one row for each device, as far as they fit"),
}
_PAGES: Final = {"e": Page.EVENTS, "m": Page.MODELS, "?": Page.HELP, "h": Page.HELP}


def _command(state: ViewState, key: str, fleet: MergedFleet) -> tuple[ViewState, TopCommand | None]:
    if key in ("q", "Q"):
        return state, Quit()
    if key == "escape":
        words = state.words if state.page is not Page.FLEET else ""
        return replace(state, page=Page.FLEET, scroll=0, words=words), None
    if key in _PAGES:
        page = Page.FLEET if state.page is _PAGES[key] else _PAGES[key]
        return replace(state, page=page, scroll=0), None
    if key in ("x", "X"):
        return _ask_to_drain(state, fleet), None
    return _adjust(state, key), None


def _adjust(state: ViewState, key: str) -> ViewState:
    match key:
        case "space" | "p":
            return replace(state, is_paused=not state.is_paused)
        case "s":
            names = list(SORTS)
            return replace(state, sort=names[(names.index(state.sort) + 1) % len(names)])
        case "r":
            return replace(state, is_reversed=not state.is_reversed)
        case "/":
            return replace(state, is_typing=True, page=Page.FLEET if state.page is Page.HELP else state.page)
        case "d":
            following, words = _DEVICES[state.with_devices]
            return replace(state, with_devices=following, message=words)
        case "tab":
            focus = Focus.REQUESTS if state.focus is Focus.NODES else Focus.NODES
            return replace(state, focus=focus, page=Page.FLEET)
        case _:
            return state


def _ask_to_drain(state: ViewState, fleet: MergedFleet) -> ViewState:
    is_in_sight = state.page in (Page.FLEET, Page.NODE)
    shown = nodes_of(state, fleet) if is_in_sight else []
    node = next((node for node in shown if node.worker_uuid == state.selected_node), None)
    if node is None:
        return replace(state, message="select a node first (esc, arrows), then x drains it")
    return replace(state, draining=node.node_id)


def _move(state: ViewState, key: str, fleet: MergedFleet) -> ViewState:
    is_node = state.page is Page.NODE
    if state.page is not Page.FLEET and not (is_node and key in ("up", "k", "down", "j")):
        lines = {"home": -_MOST_LINES, "end": _MOST_LINES}.get(key, _STEPS.get(key, 0))
        return replace(state, scroll=min(max(0, state.scroll + lines), _MOST_LINES))
    if state.focus is Focus.NODES:
        ids = [node.worker_uuid for node in nodes_of(state, fleet)]
        return replace(state, selected_node=_next(ids, state.selected_node, key))
    ids = [running.request.rid for running in requests_of(state, fleet)]
    return replace(state, selected_request=_next(ids, state.selected_request, key))


def _next(ids: Sequence[str], now: str, key: str) -> str:
    """Return the neighbour in a list; the first one if nothing is selected, or what was is gone."""
    if not ids:
        return ""
    if now not in ids:
        return ids[-1] if key == "end" else ids[0]
    at = ids.index(now)
    to = {"home": 0, "end": len(ids) - 1}.get(key, at + _STEPS.get(key, 0))
    return ids[min(max(0, to), len(ids) - 1)]


def _open(state: ViewState, fleet: MergedFleet) -> tuple[ViewState, TopCommand | None]:
    if state.page is not Page.FLEET:
        return replace(state, page=Page.FLEET, scroll=0), None
    if state.focus is Focus.NODES:
        if any(node.worker_uuid == state.selected_node for node in fleet.nodes):
            return replace(state, page=Page.NODE), None
        return replace(state, message="select a node first (arrows)"), None
    for running in requests_of(state, fleet):
        if running.request.rid == state.selected_request:
            command = ExplainRequest(running.endpoint, running.request.rid)
            return replace(state, page=Page.REQUEST, traces=(), scroll=0), command
    return replace(state, message="select a request first (arrows)"), None
