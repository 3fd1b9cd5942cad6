"""Fleets as `zmqrt top` sees them, and its screen as plain text."""

from __future__ import annotations

import io
from typing import Any

import msgspec
from rich.console import Console, RenderableType

from zmqrt.client.top.fleet import BrokerView, MergedFleet, merge
from zmqrt.client.top.history import FleetHistory
from zmqrt.client.top.state import ViewState
from zmqrt.client.top.view import Viewport, screen
from zmqrt.protocol.snapshot import Snapshot


def fleet_of(*snapshots: Snapshot) -> MergedFleet:
    """Put brokers together."""
    numbered = [msgspec.structs.replace(one, broker_epoch=number + 1) for number, one in enumerate(snapshots)]
    return merge([BrokerView(endpoint=f"tcp://b{number}:1", snapshot=one) for number, one in enumerate(numbered)])


def lines_of(
    fleet: MergedFleet,
    state: ViewState | None = None,
    *,
    width: int = 80,
    height: int = 24,
    history: FleetHistory | None = None,
) -> list[str]:
    """Draw the screen, and return its lines without what is blank at their ends."""
    viewport = Viewport(width=width, height=height, clock="12:00:00")
    shown = text_of(screen(fleet, history or FleetHistory(), state or ViewState(), viewport), width=width)
    return [line.rstrip() for line in shown.split("\n")[:-1]]


def text_of(renderable: RenderableType, *, width: int = 80, color: Any = None) -> str:
    """Render as a terminal of that width would show it."""
    console = Console(file=io.StringIO(), width=width, color_system=color, force_terminal=color is not None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
