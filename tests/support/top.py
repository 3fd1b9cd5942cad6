"""Fleets as `zmqrt top` sees them, and its screen as plain text."""

from __future__ import annotations

import io
from typing import Any

import msgspec
from rich.console import Console, RenderableType

from support.fake_fleet import EMPTY, node
from zmqrt.client.top.fleet import BrokerView, MergedFleet, merge
from zmqrt.client.top.history import History
from zmqrt.client.top.state import ViewState
from zmqrt.client.top.view import Viewport, screen
from zmqrt.protocol.snapshot import (
    EventLevel,
    FleetEvent,
    NodeStatus,
    RequestPhase,
    RequestStatus,
    ServiceStatus,
    Snapshot,
)


def service(name: str = "m", **fields: Any) -> ServiceStatus:
    """Describe a model."""
    known: dict[str, Any] = {
        "task": "generate",
        "model": name,
        "revision": "r1",
        "context": 64,
        "nodes": 1,
        "capacity": 8,
        "queued": 0,
        "running": 2,
        **fields,
    }
    return ServiceStatus(service=name, **known)


def event(number: int, text: str = "something", *, kind: Any = "joined", level: EventLevel = "info") -> FleetEvent:
    """Describe an event at a time that is its number."""
    return FleetEvent(id=number, at_s=float(number), level=level, kind=kind, subject=f"n{number}", text=text)


def request(name: str, *, age_s: float = 1.0, phase: RequestPhase = "streaming", node_id: str = "a") -> RequestStatus:
    """Describe a live request."""
    rid = name.encode().hex().ljust(32, "0")
    return RequestStatus(
        rid=rid, request_id=name, service="m", phase=phase, age_s=age_s, node=node_id, units=5, losses=0
    )


def snapshot(*nodes: NodeStatus, **fields: Any) -> Snapshot:
    """Describe a broker."""
    return msgspec.structs.replace(EMPTY, nodes=list(nodes), **fields)


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
    history: History | None = None,
) -> list[str]:
    """Draw the screen, and return its lines without what is blank at their ends."""
    viewport = Viewport(width=width, height=height, clock="12:00:00")
    shown = text_of(screen(fleet, history or History(), state or ViewState(), viewport), width=width)
    return [line.rstrip() for line in shown.split("\n")[:-1]]


def text_of(renderable: RenderableType, *, width: int = 80, color: Any = None) -> str:
    """Render as a terminal of that width would show it."""
    console = Console(file=io.StringIO(), width=width, color_system=color, force_terminal=color is not None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def many(count: int, devices: int = 1) -> Snapshot:
    """Describe a large fleet."""
    nodes: list[NodeStatus] = []
    for number in range(count):
        one = node(f"node-{number:02}")
        several = [msgspec.structs.replace(one.devices[0], id=f"cuda:{index}") for index in range(devices)]
        nodes.append(msgspec.structs.replace(one, devices=several))
    return snapshot(*nodes)
