"""Pages about one node and about the models. Pure."""

from __future__ import annotations

from rich.text import Text

from ...protocol.snapshot import DeviceStatus, NodeStatus
from .fleet import Fleet
from .history import History
from .state import State
from .tables import doing, memory
from .text import NOTHING, Column, ago, bar, number, table, took

_BAR = 20


def device_page(fleet: Fleet, history: History, state: State, width: int) -> list[Text]:
    """Show everything that is known of the selected node."""
    node = next((one for one in fleet.nodes if one.worker_uuid == state.selected_node), None)
    if node is None:
        return [Text("this node is gone; esc leads back", style="yellow")]
    lines = [
        Text.assemble((node.node_id, "bold"), f"  {node.health}, heard {ago(node.heartbeat_age_s)} ago"),
        Text.assemble("load  ", bar(node.load, _BAR), f" {node.in_flight} of {node.capacity} requests"),
        Text(f"done  {node.completed} answered, {node.failed} failed here, up {ago(node.elapsed_s)}"),
        Text(f"serves {', '.join(node.services) or 'nothing yet'}"),
        Text(f"uuid  {node.worker_uuid}", style="dim"),
        Text(),
    ]
    rates = history.tokens_per_s.get(node.worker_uuid, {})
    for device in node.devices:
        lines += _device(device, node, rates.get(device.id))
    mine = [one for one in fleet.requests if one.request.node == node.node_id]
    lines += [Text(f"{len(mine)} of the slowest requests run here", style="dim")] if mine else []
    for line in lines:
        line.truncate(width)
    return lines


def _device(device: DeviceStatus, node: NodeStatus, rate: float | None) -> list[Text]:
    prompt, hits = device.prompt_tokens, device.prefix_hit_percent
    median, p99 = device.cancel_latency.quantile(0.5), device.cancel_latency.quantile(0.99)
    busy = NOTHING if device.busy_percent is None else f"{device.busy_percent}%"
    heat = NOTHING if device.celsius is None else f"{device.celsius} °C"
    name = f" {device.name}" if device.name else f" ({device.kind})"
    return [
        Text.assemble((device.id, "bold"), name, "  ", doing(device, node)),
        Text(f"  tokens   {number(rate)}/s, {number(device.tokens)} in {number(device.steps)} steps"),
        Text(f"  prompts  {number(prompt)} tokens computed" + (f", {hits}% found in the pool" if hits else "")),
        Text(
            f"  batch    {device.running} of {device.capacity}, {device.waiting} wait, largest {device.largest_batch}"
        ),
        Text.assemble("  kv       ", bar(device.kv_percent / 100, _BAR), f" {device.kv_percent}%"),
        Text(f"  device   memory {memory(device)}, busy {busy}, {heat}"),
        Text(
            f"  cancels  {device.cancel_latency.count}, p50 {took(median)} p99 {took(p99)}, "
            f"{device.tokens_after_cancel} tokens in vain"
        ),
        Text(f"  engine   {device.restarts} restarts, its loop turned {took(device.loop_age_s)} before it was heard"),
        Text(),
    ]


def models_page(fleet: Fleet, width: int) -> list[Text]:
    """Show all models."""
    lines = models_lines(fleet, width)
    if not lines:
        return [Text("no node has offered a model yet", style="yellow")]
    return [*lines, Text(), Text("times are since the broker started", style="dim")]


def models_lines(fleet: Fleet, width: int) -> list[Text]:
    """Show one row for each model; nothing without any."""
    columns = [
        Column("model", most=32),
        Column("task"),
        Column("nodes", "right"),
        Column("running", "right"),
        Column("waiting", "right"),
        Column("tokens", "right"),
        Column("queue p99", "right"),
        Column("first p50", "right"),
        Column("token p50", "right"),
        Column("answer p50", "right"),
        Column("weights", most=30),
    ]
    rows = [
        [
            Text(one.service, style="bold"),
            Text(one.task),
            Text(str(one.nodes), style="" if one.nodes else "red"),
            Text(f"{one.running}/{one.capacity}"),
            Text(str(one.queued), style="yellow" if one.queued else ""),
            Text(number(one.generated_tokens)),
            Text(took(one.queue_time.quantile(0.99))),
            Text(took(one.first_token.quantile(0.5))),
            Text(took(one.token_time.quantile(0.5))),
            Text(took(one.duration.quantile(0.5))),
            Text(one.revision or one.model, style="dim"),
        ]
        for one in fleet.services
    ]
    return table(columns, rows, width) if rows else []
