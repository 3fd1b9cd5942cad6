"""The lists of the screen: nodes with their devices, the slowest requests, events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from rich.text import Text

from ...protocol.snapshot import DeviceStatus, NodeStatus
from ..cli.text import NOTHING, Column, ago, bar, number, size, table, took
from .fleet import MergedFleet, SourcedEvent, SourcedRequest
from .header import condition
from .history import FleetHistory
from .state import Focus, ViewState

WIDE: Final = 110
"""From here on there is room for what the driver reports, and for models."""
_SETTLED: Final = ("ready", "draining")
_BAR: Final = 6
_WIDE_BAR: Final = 10
_PHASE_BAR: Final = 4
_HEALTH: Final = {"active": "green", "suspect": "yellow", "draining": "yellow", "lost": "red", "evicted": "red"}
_LEVEL: Final = {"info": "", "warning": "yellow", "error": "bold red"}


# --- nodes and devices -----------------------------------------------------------------------------------------------


def nodes_lines(
    nodes: Sequence[NodeStatus], history: FleetHistory, state: ViewState, width: int, *, room: int
) -> list[Text]:
    """Show one row for each device while they fit, else one for each node; the selected one is always in sight."""
    if not nodes:
        return [Text("no node matches the filter; esc clears it", style="yellow")] if state.words else []
    devices = sum(max(1, len(node.devices)) for node in nodes)
    is_open = devices < room if state.with_devices is None else state.with_devices
    rows: list[tuple[str, list[Text]]] = []
    for node in nodes:
        rows += _rows(node, history, width, is_open=is_open)
    lines = table(_columns(width), [row for _, row in rows], width)
    return [lines[0], *_in_sight(lines[1:], [uuid for uuid, _ in rows], state, room - 1)]


def _columns(width: int) -> list[Column]:
    columns = [
        Column("node", most=24),
        Column("health", most=12),
        Column("load", most=18),
        Column("device", most=14),
        Column("doing", most=32),
        Column("tok/s", "right"),
        Column("batch", "right"),
        Column("kv", "right"),
    ]
    if width >= WIDE:
        columns += [
            Column("memory", "right", 14),
            Column("busy", "right"),
            Column("temp", "right"),
            Column("hits", "right"),
            Column("model", most=28),
        ]
    return columns


def _in_sight(lines: list[Text], uuids: list[str], state: ViewState, room: int) -> list[Text]:
    """Mark the selected node, and leave out what does not fit, on the far side from it."""
    chosen = [index for index, uuid in enumerate(uuids) if uuid == state.selected_node]
    if state.focus is Focus.NODES:
        for index in chosen:
            lines[index].stylize("reverse")
    if len(lines) <= room:
        return lines
    shown = max(1, room - 1)
    first = max(0, min((chosen[0] if chosen else 0) - shown // 2, len(lines) - shown))
    left = len(lines) - shown
    return [*lines[first : first + shown], Text(f"… {left} more rows", style="dim")][:room]


def _rows(node: NodeStatus, history: FleetHistory, width: int, *, is_open: bool) -> list[tuple[str, list[Text]]]:
    rates = history.tokens_per_s.get(node.worker_uuid, {})
    shown = node.devices if is_open and node.devices else [_whole(node)]
    own = [Text(node.node_id, style="bold"), _health(node), _load(node, width)]
    rows: list[tuple[str, list[Text]]] = []
    for device in shown:
        rate = rates.get(device.id) if device in node.devices else sum(rates.values()) if rates else None
        if condition(node) == "lost":
            device = msgspec.structs.replace(device, running=0)  # noqa: PLW2901 - nothing runs there any more
        rows.append((node.worker_uuid, [*own, *_device(device, node, rate, width)]))
        own = [Text(), Text(), Text()]
    return rows


def _whole(node: NodeStatus) -> DeviceStatus:
    """Put the devices of a node into one row."""
    devices = node.devices
    if len(devices) == 1:
        return devices[0]
    used = [device.memory_used_bytes for device in devices if device.memory_used_bytes is not None]
    return DeviceStatus(
        id=f"{len(devices)} devices" if devices else NOTHING,
        kind=devices[0].kind if devices else "",
        name="",
        memory_bytes=sum(device.memory_bytes for device in devices),
        phase=node.phase,
        percent=node.percent,
        elapsed_s=node.elapsed_s,
        capacity=sum(device.capacity for device in devices),
        running=sum(device.running for device in devices),
        waiting=sum(device.waiting for device in devices),
        kv_percent=max((device.kv_percent for device in devices), default=0),
        loop_age_s=max((device.loop_age_s for device in devices), default=0.0),
        steps=sum(device.steps for device in devices),
        tokens=sum(device.tokens for device in devices),
        largest_batch=max((device.largest_batch for device in devices), default=0),
        restarts=sum(device.restarts for device in devices),
        prompt_tokens=sum(device.prompt_tokens for device in devices),
        reused_tokens=sum(device.reused_tokens for device in devices),
        memory_used_bytes=sum(used) if used else None,
        busy_percent=max((device.busy_percent for device in devices if device.busy_percent is not None), default=None),
        celsius=max((device.celsius for device in devices if device.celsius is not None), default=None),
        fallback=next((device.fallback for device in devices if device.fallback), ""),
    )


def _health(node: NodeStatus) -> Text:
    """Say how it is, and how long it has not been heard; a second or two is how often nodes speak."""
    return Text(f"{node.health} {ago(node.heartbeat_age_s)}", style=_HEALTH.get(node.health, ""))


def _load(node: NodeStatus, width: int) -> Text:
    style = "red" if node.load >= 1 else "green"
    cells = _WIDE_BAR if width >= WIDE else _BAR
    return Text.assemble(bar(node.load, cells, style), f" {node.in_flight}/{node.capacity}")


def _device(device: DeviceStatus, node: NodeStatus, rate: float | None, width: int) -> list[Text]:
    cells = [
        Text(device.id),
        doing(device, node),
        Text(number(rate)),
        Text(str(device.running)),
        Text(f"{device.kv_percent}%", style="yellow" if device.kv_percent >= 90 else ""),
    ]
    if width >= WIDE:
        cells += [
            Text(memory(device)),
            Text(NOTHING if device.busy_percent is None else f"{device.busy_percent}%"),
            Text(NOTHING if device.celsius is None else f"{device.celsius}°"),
            Text(NOTHING if device.prefix_hit_percent is None else f"{device.prefix_hit_percent}%"),
            Text(", ".join(node.services)),
        ]
    return cells


def doing(device: DeviceStatus, node: NodeStatus) -> Text:
    """Say what a device is at: while it gets ready, how far; what is odd about it otherwise."""
    if node.health in ("lost", "evicted"):
        return Text("gone", style="red")
    if device.phase not in _SETTLED:
        style = "red" if device.phase == "failed" else "cyan"
        text = Text(device.phase, style=style)
        if device.phase != "failed":
            text = Text.assemble(text, " ", bar(device.percent / 100, _PHASE_BAR, style), f" {device.percent}%")
        return text
    text = Text("draining" if node.health == "draining" else device.phase)
    if device.loop_age_s > 2.0:
        text.append(f", stands still {took(device.loop_age_s)}", "bold red")
    if device.waiting:
        text.append(f", {device.waiting} wait", "yellow")
    if device.restarts:
        text.append(f", {device.restarts} restarts", "red")
    if device.fallback:
        text.append(", fallback", "yellow")
    return text


def memory(device: DeviceStatus) -> str:
    """Say how much of its memory is in use, as far as that is known."""
    if device.memory_used_bytes is None:
        return size(device.memory_bytes) if device.memory_bytes else NOTHING
    return f"{size(device.memory_used_bytes)}/{size(device.memory_bytes)}"


# --- requests and events ---------------------------------------------------------------------------------------------


def requests_lines(requests: Sequence[SourcedRequest], state: ViewState, width: int) -> list[Text]:
    """Show the oldest live requests."""
    columns = [
        Column("slowest requests", most=36),
        Column("age", "right"),
        Column("state", most=10),
        Column("node", most=20),
        Column("tokens", "right"),
        Column("moved", "right"),
        Column("model", most=24),
    ]
    rows = [
        [
            Text(request.request_id),
            Text(took(request.age_s)),
            Text(request.phase, style="yellow" if request.phase == "queued" else ""),
            Text(request.node or NOTHING),
            Text(str(request.units)),
            Text(str(request.losses), style="yellow" if request.losses else "dim"),
            Text(request.service),
        ]
        for request in (running.request for running in requests)
    ]
    lines = table(columns, rows, width)
    if state.focus is Focus.REQUESTS:
        for running, line in zip(requests, lines[1:], strict=True):
            if running.request.rid == state.selected_request:
                line.stylize("reverse")
    return lines


def events_lines(events: Iterable[SourcedEvent], fleet: MergedFleet, width: int) -> list[Text]:
    """Show events, the newest first."""
    is_shared = len(fleet.views) > 1
    lines = [Text("events", style="dim")]
    for happened in events:
        event = happened.event
        times = f" x{event.count}" if event.count > 1 else ""
        line = Text(no_wrap=True)
        line.append(f"{ago(happened.ago_s):>9}  ", "dim")
        line.append(f"{event.kind}{times} ", _LEVEL[event.level] or "bold")
        line.append(f"{event.subject}: {event.text}")
        if is_shared:
            line.append(f" ({happened.broker})", "dim")
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines
