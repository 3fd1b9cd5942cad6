"""A snapshot as something to look at: pure, a snapshot in, a rich renderable out. `status` and `up` show it."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ...protocol.snapshot import DeviceStatus, NodeStatus, Snapshot

_BAR_CELLS: Final = 12
_STYLES: Final = {"active": "green", "suspect": "yellow", "draining": "yellow", "lost": "red", "evicted": "red"}
_SETTLED: Final = ("ready", "draining", "failed")


def fleet_view(snapshot: Snapshot) -> RenderableType:
    """Show a broker and everything that has joined it."""
    if not snapshot.nodes:
        return Group(headline(snapshot), Text("No node has joined yet; start one with zmqrt-worker.", style="yellow"))
    return Group(headline(snapshot), nodes_table(snapshot.nodes))


def headline(snapshot: Snapshot) -> Text:
    """Say in one line whether requests are served."""
    state = "draining" if snapshot.draining else "ready" if snapshot.ready else "not ready"
    models = ", ".join(service.service for service in snapshot.services) or "none yet"
    text = Text.assemble(
        (f"broker {snapshot.broker_id} ", "bold"),
        (state, "green" if state == "ready" else "yellow"),
        f" · up {duration(snapshot.uptime_s)} · {_count(len(snapshot.nodes), 'node')}"
        f" · {_count(snapshot.clients, 'client')} · {snapshot.running} running · {snapshot.queued} waiting"
        f" · models: {models}",
    )
    text.no_wrap = False
    return text


def nodes_table(nodes: list[NodeStatus]) -> Table:
    """Show one row for each device, the node's own columns on its first."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "health", "load", "device", "doing", "tokens", "batch", "restarts"):
        table.add_column(column, justify="right" if column in ("tokens", "batch", "restarts") else "left")
    for node in sorted(nodes, key=lambda one: one.node_id):
        own: list[RenderableType] = [Text(node.node_id, style="bold"), _health(node), _load(node)]
        for device in node.devices:
            table.add_row(*own, *_device(device))
            own = ["", "", ""]
        if not node.devices:
            table.add_row(*own, "", phase(node.phase, node.percent, node.elapsed_s))
    return table


def phase(name: str, percent: int, elapsed_s: float) -> RenderableType:
    """Show what a node or device is doing; while it gets ready, how far it is and for how long."""
    if name in _SETTLED:
        return Text(name, style="red" if name == "failed" else "")
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(name), ProgressBar(100, percent, _BAR_CELLS), Text(f"{percent} % {duration(elapsed_s)}"))
    return grid


def duration(seconds: float) -> str:
    """Write a time the way people say it."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _health(node: NodeStatus) -> Text:
    style = _STYLES.get(node.health, "")
    age = f" {node.heartbeat_age_s:.0f} s" if node.heartbeat_age_s >= 1 else ""
    return Text(f"{node.health}{age}", style=style)


def _load(node: NodeStatus) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(max(1, node.capacity), node.in_flight, _BAR_CELLS)
    grid.add_row(bar, Text(f"{node.in_flight}/{node.capacity}"))
    return grid


def _device(device: DeviceStatus) -> tuple[RenderableType, ...]:
    return (
        Text(f"{device.id} {device.name}".strip()),
        phase(device.phase, device.percent, device.elapsed_s),
        str(device.tokens),
        str(device.largest_batch),
        str(device.restarts),
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
