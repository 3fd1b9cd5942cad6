"""Draws a snapshot, for `zmqrt status` and `zmqrt up`. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...protocol.snapshot import DeviceStatus, NodeStatus, ServiceStatus, Snapshot
from .text import BAR_CELLS, bar, count_of, duration

_STYLES: Final = {"active": "green", "suspect": "yellow", "draining": "yellow", "lost": "red", "evicted": "red"}
_SETTLED: Final = ("ready", "draining", "failed")


def fleet_view(snapshot: Snapshot) -> RenderableType:
    """Show a broker and everything that has joined it."""
    if not snapshot.nodes:
        return Group(headline(snapshot), Text("No node has joined yet; start one with zmqrt-worker.", style="yellow"))
    tables = headline(snapshot), nodes_table(snapshot.nodes)
    return Group(*tables, *capabilities(snapshot.services), *fallbacks(snapshot.nodes))


def headline(snapshot: Snapshot) -> Text:
    """Say in one line whether requests are served."""
    state = "draining" if snapshot.draining else "ready" if snapshot.ready else "not ready"
    models = ", ".join(service.service for service in snapshot.services if service.is_listed) or "none yet"
    text = Text.assemble(
        (f"broker {snapshot.broker_id} ", "bold"),
        (state, "green" if state == "ready" else "yellow"),
        f" · up {duration(snapshot.uptime_s)} · {count_of(len(snapshot.nodes), 'node')}"
        f" · {count_of(snapshot.clients, 'client')} · {snapshot.running} running · {snapshot.queued} waiting"
        f" · models: {models}",
    )
    text.no_wrap = False
    return text


def nodes_table(nodes: list[NodeStatus]) -> Table:
    """Show one row for each device, the node's own columns on its first."""
    table = Table(box=None, pad_edge=False)
    for column in ("node", "health", "load", "device", "doing", "tokens", "batch"):
        table.add_column(column, justify="right" if column in ("tokens", "batch") else "left", no_wrap=True)
    for node in sorted(nodes, key=lambda node: node.node_id):
        own = [Text(node.node_id, style="bold"), _health(node), _load(node)]
        for device in node.devices:
            table.add_row(*own, *_device(device))
            own = [Text(), Text(), Text()]
        if not node.devices:
            table.add_row(*own, "", phase(node.phase, node.percent, node.elapsed_s))
    return table


def capabilities(services: list[ServiceStatus]) -> Iterator[Text]:
    """Say what each model that is served can do beyond its task."""
    for service in services:
        if service.is_listed and service.capabilities:
            yield Text(f"{service.service} can do: {service.can}", style="dim")


def fallbacks(nodes: list[NodeStatus]) -> Iterator[Text]:
    """Say which devices have to do without something that failed while they loaded, and why."""
    for node in sorted(nodes, key=lambda node: node.node_id):
        for device in node.devices:
            if device.fallback:
                yield Text(f"{node.node_id} {device.id} is on a fallback: {device.fallback}", style="yellow")


def phase(name: str, percent: int, elapsed_s: float) -> Text:
    """Show what a node or device is doing; while it gets ready, how far it is and for how long."""
    if name in _SETTLED:
        return Text(name, style="red" if name == "failed" else "")
    return Text.assemble((name, "yellow"), " ", bar(percent / 100, BAR_CELLS), f" {percent} % {duration(elapsed_s)}")


def _health(node: NodeStatus) -> Text:
    age = f" {node.heartbeat_age_s:.0f} s" if node.health != "active" else ""
    return Text(f"{node.health}{age}", style=_STYLES.get(node.health, ""))


def _load(node: NodeStatus) -> Text:
    share = node.in_flight / node.capacity if node.capacity else 0.0
    return Text.assemble(bar(share, BAR_CELLS), f" {node.in_flight}/{node.capacity}")


def _device(device: DeviceStatus) -> tuple[Text, Text, str, str]:
    doing = phase(device.phase, device.percent, device.elapsed_s)
    if device.restarts:
        doing.append(f", {count_of(device.restarts, 'restart')}", style="red")
    if device.fallback:
        doing.append(", on a fallback", style="yellow")
    for words in _facts(device):
        doing.append(f", {words}", style="dim")
    return Text(device.id), doing, str(device.tokens), str(device.largest_batch)


def _facts(device: DeviceStatus) -> Iterator[str]:
    """Say what the driver reports, and how much of the prompts was cached."""
    if device.busy_percent is not None:
        yield f"busy {device.busy_percent} %"
    if device.memory_used_bytes is not None and device.memory_bytes:
        yield f"memory {100 * device.memory_used_bytes // device.memory_bytes} %"
    if device.celsius is not None:
        yield f"{device.celsius} °C"
    if device.prefix_hit_percent:
        yield f"prefix hits {device.prefix_hit_percent} %"
