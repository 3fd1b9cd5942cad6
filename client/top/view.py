"""The screen of `zmqrt top`: a fleet, its history and what was chosen in, lines of text out. Pure.

Every line is at most as wide as the screen, and there are never more than fit. What matters stands in words and not in
colours alone, so that it reads the same without them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from rich.console import Console, Group, RenderableType
from rich.text import Text

from ..cli.text import Cleaning, clean
from ..cli.trace_view import trace_view
from .fleet import MergedFleet, snapshots
from .header import header
from .history import FleetHistory
from .pages import HELP, device_page, models_lines, models_page
from .state import Focus, Page, ViewState, events_of, nodes_of, requests_of
from .tables import WIDE, events_lines, nodes_lines, requests_lines

T = TypeVar("T")
_WRAPPER: Final = Console(width=80, file=io.StringIO())
"""Wrapping text needs a console, though none is written to."""
_MOST_REQUESTS: Final = 10
_MOST_EVENTS: Final = 12
_MOST_MODELS: Final = 6
_TALL: Final = 30
"""Rows from which there is room for models too, and for lines in between."""
_KEYS: Final = "q quit  ? help  ↑↓ select  ↵ open  x drain  s sort  / filter  ␣ pause  e events  m models"
_KEYS_SHORT: Final = "q quit  ? help  ↑↓ select  ↵ open  x drain  s sort  / filter  ␣ pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewport:
    """The size of the screen, and the time that stands in its corner."""

    width: int
    height: int
    clock: str


def screen(fleet: MergedFleet, history: FleetHistory, state: ViewState, viewport: Viewport) -> RenderableType:
    """Draw everything."""
    width, height = viewport.width, viewport.height
    head: list[Text] = []
    if state.page is not Page.HELP:
        head = header(fleet, history, width, clock=viewport.clock, is_paused=state.is_paused)
    room = max(0, height - len(head) - 1)
    lines = [*head, *_body(fleet, history, state, width, room)[:room]]
    lines += [Text()] * (height - 1 - len(lines))
    return Group(*_fit(lines, viewport), _footer(fleet, state, width))


def once(fleet: MergedFleet, history: FleetHistory, width: int) -> RenderableType:
    """Draw all nodes and the newest events, however many lines that takes: for a pipe or a log."""
    state = ViewState(with_devices=True)
    requests, events = requests_of(state, fleet)[:_MOST_REQUESTS], events_of(state, fleet)[:_MOST_EVENTS]
    lines = header(fleet, history, width, clock="", is_paused=False)
    lines += nodes_lines(nodes_of(state, fleet), history, state, width, room=10_000)
    if requests:
        lines += [Text(), *requests_lines(requests, state, width)]
    if events:
        lines += [Text(), *events_lines(events, fleet, width)]
    return Group(*map(clean, lines))


def _fit(lines: Sequence[Text], viewport: Viewport) -> list[Text]:
    """Cut what is too wide: a line that wraps would push the last one off the screen."""
    fitted: list[Text] = []
    for line in lines[: max(0, viewport.height - 1)]:
        cut = clean(line)
        cut.truncate(viewport.width, overflow="crop")
        cut.no_wrap = True
        fitted.append(cut)
    return fitted


def _body(fleet: MergedFleet, history: FleetHistory, state: ViewState, width: int, room: int) -> list[Text]:
    if state.page in (Page.FLEET, Page.NODE) and not snapshots(fleet.views):
        return _unreachable(fleet, width)
    match state.page:
        case Page.FLEET:
            return _fleet_page(fleet, history, state, width, room)
        case Page.NODE:
            return _scrolled(device_page(fleet, history, state, width), state, room)
        case Page.EVENTS:
            return _scrolled(events_lines(events_of(state, fleet), fleet, width), state, room)
        case Page.MODELS:
            return _scrolled(models_page(fleet, width), state, room)
        case Page.REQUEST:
            return _scrolled(_trace_lines(state, width), state, room)
        case Page.HELP:
            return _scrolled([Text(line) for line in HELP.splitlines()], state, room)


def _unreachable(fleet: MergedFleet, width: int) -> list[Text]:
    """Say why no broker can be reached."""
    lines = [Text()]
    for view in fleet.views:
        lines += Text(view.problem or "not asked yet", style="red").wrap(_WRAPPER, width)
    return [*lines, Text(), Text("trying again …", style="dim")]


def _scrolled(lines: list[Text], state: ViewState, room: int) -> list[Text]:
    at = min(state.scroll, max(0, len(lines) - room))
    return lines[at:]


def _fleet_page(fleet: MergedFleet, history: FleetHistory, state: ViewState, width: int, room: int) -> list[Text]:
    """Share the room: what stands below gets what it needs up to a bound, nodes the rest, and at least half."""
    is_tall = room > _TALL
    below = _below_nodes(fleet, state, width, room)
    taken = sum(map(len, below))
    gaps = len(below) if is_tall else 1
    lines = nodes_lines(nodes_of(state, fleet), history, state, width, room=max(2, room - taken - is_tall * gaps))
    has_gap = is_tall or len(lines) + taken < room
    for number, part in enumerate(below):
        lines += [Text(), *part] if has_gap and (is_tall or not number) else part
    return lines


def _below_nodes(fleet: MergedFleet, state: ViewState, width: int, room: int) -> list[list[Text]]:
    """Draw models where there is much room, the slowest requests, and the newest events."""
    requests, events = requests_of(state, fleet), events_of(state, fleet)
    is_tall, spare = room > _TALL, room // 2
    shown_events = min(len(events), _MOST_EVENTS if is_tall else 4, max(0, spare - 2))
    shown_requests = min(len(requests), _MOST_REQUESTS if is_tall else 3, max(0, spare - 2 - shown_events))
    if state.focus is Focus.REQUESTS:
        shown_requests = min(len(requests), max(shown_requests, spare))
    ids = [running.request.rid for running in requests]
    chosen = _window(requests, ids, state.selected_request, shown_requests)
    parts = [
        models_lines(fleet, width)[: _MOST_MODELS + 1] if is_tall else [],
        requests_lines(chosen, state, width) if chosen else [],
        events_lines(events[:shown_events], fleet, width) if shown_events else [],
    ]
    return [part for part in parts if part]


def _window(items: list[T], ids: list[str], selected: str, count: int) -> list[T]:
    """Return `count` items in a row, the selected one among them."""
    at = ids.index(selected) if selected in ids else 0
    first = max(0, min(at - count // 2, len(items) - count))
    return items[first : first + count]


def _trace_lines(state: ViewState, width: int) -> list[Text]:
    if not state.traces:
        return [Text("asking the broker …", style="dim")]
    console = Console(width=width, force_terminal=True, color_system="standard", file=io.StringIO(), markup=False)
    console.push_render_hook(Cleaning())
    lines: list[Text] = []
    for trace in state.traces:
        with console.capture() as captured:
            console.print(trace_view(trace))
        lines += [*Text.from_ansi(captured.get()).split("\n", allow_blank=True)]
    return lines


def _footer(fleet: MergedFleet, state: ViewState, width: int) -> Text:
    if state.is_typing:
        line = Text.assemble(("filter: ", "bold"), state.words, ("▏", "blink"), ("  ↵ keep  esc clear", "dim"))
    elif state.draining:
        named = sum(node.node_id == state.draining for node in fleet.nodes)
        which = f"{state.draining} ({named} nodes of that name)" if named > 1 else state.draining
        line = Text(f"Drain {which}: finish what runs, take nothing more, leave? y/n", style="bold yellow")
    elif state.message:
        line = clean(Text(state.message, style="bold"))
    else:
        line = Text(_KEYS if width >= WIDE else _KEYS_SHORT, style="dim")
        if state.words:
            line = Text.assemble(("filter: " + state.words, "bold yellow"), ("  esc clears  ", "dim"), line)
    line.truncate(width)
    line.no_wrap = True
    return line
