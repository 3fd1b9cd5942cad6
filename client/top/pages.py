"""The pages about one node, about the models, and the help. Pure."""

from __future__ import annotations

import textwrap
from typing import Final

from rich.text import Text

from ...protocol.snapshot import DeviceStatus, NodeStatus, ServiceStatus
from ..cli.text import NOTHING, Column, ago, bar, number, table, took
from .fleet import MergedFleet
from .history import FleetHistory
from .state import ViewState
from .tables import doing, memory

_BAR: Final = 20
HELP: Final = """\
  ↑ ↓ j k     select a node (or a request); page up, page down, home, end
  tab         move in the list of requests instead, and back
  enter       open the node, or the story of the request; esc leads back
  x           drain the selected node, after a question
  s r         sort nodes by name, load, health, tokens, memory; reverse
  /           filter nodes, requests and events by a word; esc clears it
  d           one row for each device, or one for each node
  e m         all events; all models
  space p     pause: the picture stands, the fleet goes on
  q ctrl-c    leave; nothing in the fleet changes by it

  healthy     heard of lately, and its model is loaded: it gets work
  loading     has joined, and makes its model ready
  suspect     silent for over a heartbeat, or standing still: no new work
  lost        gone, or silent for too long: its work went on elsewhere
  moved       requests given to another node; resumed: at their next token
  tok/s       between the last two heartbeats; batch: in the engine at the last
  kv          how full the memory for keys and values is
  hits        share of the prompts that was found there, and not computed
  p50 p99     of what ended in the last minute; of models, since the start
"""


def device_page(fleet: MergedFleet, history: FleetHistory, state: ViewState, width: int) -> list[Text]:
    """Show everything that is known of the selected node."""
    node = next((node for node in fleet.nodes if node.worker_uuid == state.selected_node), None)
    if node is None:
        return [Text("this node is gone; esc leads back", style="yellow")]
    lines = [
        Text.assemble((node.node_id, "bold"), f"  {node.health}, heard {ago(node.heartbeat_age_s)} ago"),
        Text.assemble("load  ", bar(node.load, _BAR), f" {node.in_flight} of {node.capacity} requests"),
        Text(f"done  {node.completed} answered, {node.failed} failed here, up {ago(node.elapsed_s)}"),
        Text(f"serves {', '.join(node.services) or 'nothing yet'}"),
        Text(f"can do {', '.join(node.capabilities) or 'nothing more'}"),
        Text(f"uuid  {node.worker_uuid}", style="dim"),
        Text(),
    ]
    rates = history.tokens_per_s.get(node.worker_uuid, {})
    for device in node.devices:
        lines += _device(device, node, rates.get(device.id), width)
    count = sum(running.request.node == node.node_id for running in fleet.requests)
    lines += [Text(f"{count} of the slowest requests run here", style="dim")] if count else []
    for line in lines:
        line.truncate(width)
    return lines


def _device(device: DeviceStatus, node: NodeStatus, rate: float | None, width: int) -> list[Text]:
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
        *_fallback(device, width),
        Text(),
    ]


def _fallback(device: DeviceStatus, width: int) -> list[Text]:
    """Say what a device has to do without, in as many lines as that takes: it is there to be read."""
    words = f"fallback {device.fallback}" if device.fallback else ""
    return [Text(f"  {line}", style="yellow") for line in textwrap.wrap(words, max(_BAR, width - 2))]


def models_page(fleet: MergedFleet, width: int) -> list[Text]:
    """Show all models."""
    lines = models_lines(fleet, width)
    if not lines:
        return [Text("no node has offered a model yet", style="yellow")]
    return [*lines, Text(), Text("times are since the broker started", style="dim")]


def models_lines(fleet: MergedFleet, width: int) -> list[Text]:
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
        Column("can", most=40),
        Column("weights", most=30),
    ]
    rows = [
        [
            Text(service.service, style="bold"),
            Text(service.task),
            Text(str(service.nodes), style="" if service.nodes else "red"),
            Text(f"{service.running}/{service.capacity}"),
            Text(_waiting(service), style="yellow" if service.queued else ""),
            Text(number(service.generated_tokens)),
            Text(took(service.queue_time.quantile(0.99))),
            Text(took(service.first_token.quantile(0.5))),
            Text(took(service.token_time.quantile(0.5))),
            Text(took(service.duration.quantile(0.5))),
            Text(service.can),
            Text(service.revision or service.model, style="dim"),
        ]
        for service in fleet.services
    ]
    return table(columns, rows, width) if rows else []


def _waiting(service: ServiceStatus) -> str:
    """Say how many wait, and for how long the last of them."""
    return str(service.queued) if service.wait_s is None else f"{service.queued}, {took(service.wait_s)}"
