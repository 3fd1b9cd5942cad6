"""The head of the screen: brokers, how many nodes are how, work, latency, what went wrong. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from ...protocol.snapshot import NodeStatus
from ..cli.text import ago, bar, number, spark, took
from .fleet import BrokerView, MergedFleet, is_serving, snapshots
from .history import FleetHistory, Latency

_LABEL: Final = 10
_BAR: Final = 10
_ROOMY: Final = 100
_MOST_SPARK: Final = 60
_STYLES: Final = {
    "healthy": "green",
    "loading": "cyan",
    "suspect": "yellow",
    "draining": "yellow",
    "lost": "red",
    "failed": "red",
}


def header(fleet: MergedFleet, history: FleetHistory, width: int, *, clock: str, is_paused: bool) -> list[Text]:
    """Draw the five lines of the head."""
    brokers = _brokers(fleet.views, width, clock=clock, is_paused=is_paused)
    if not snapshots(fleet.views):
        unknown = Text("unknown", style="dim")
        return [brokers, *(_line(label, unknown) for label in ("nodes", "work", "latency", "so far"))]
    return [
        brokers,
        _line("nodes", _nodes(fleet.nodes)),
        _line("work", _work(fleet, history, width)),
        _line("latency", _latency(history, width)),
        _line("so far", _counts(fleet, width)),
    ]


def condition(node: NodeStatus) -> str:
    """Name the condition of a node in one word."""
    if node.health in ("lost", "evicted"):
        return "lost"
    if node.health in ("suspect", "draining"):
        return node.health
    return "healthy" if is_serving(node) else "failed" if node.phase == "failed" else "loading"


def _line(label: str, content: Text) -> Text:
    return Text.assemble((label.ljust(_LABEL), "bold"), content)


def _brokers(views: Sequence[BrokerView], width: int, *, clock: str, is_paused: bool) -> Text:
    line = Text.assemble(("zmqrt top ", "bold"))
    for view in views:
        line.append(" ")
        if view.snapshot is None:
            line.append(f"{view.endpoint} unreachable", "bold red")
            continue
        state = "draining" if view.snapshot.draining else "ready" if view.snapshot.ready else "not ready"
        line.append(view.snapshot.broker_id, "bold")
        line.append(f" {state}", "green" if state == "ready" else "yellow")
        line.append(f" up {ago(view.snapshot.uptime_s)}", "dim")
    paused = ("PAUSED ", "bold reverse yellow") if is_paused else ""
    right = Text.assemble(paused, " " if is_paused else "", (clock, "dim"))
    line.truncate(max(0, width - right.cell_len - 1), overflow="ellipsis")
    line.append(" " * max(1, width - line.cell_len - right.cell_len))
    return line + right


def _nodes(nodes: Sequence[NodeStatus]) -> Text:
    if not nodes:
        return Text("none has joined yet; start one with zmqrt-worker", style="yellow")
    found = [condition(node) for node in nodes]
    text = Text()
    for word, style in _STYLES.items():
        count = found.count(word)
        if count or word in ("healthy", "suspect", "draining", "lost"):
            text.append("   " if text else "")
            text.append(f"{count} {word}", style if count else "dim")
    return text


def _work(fleet: MergedFleet, history: FleetHistory, width: int) -> Text:
    share = fleet.running / fleet.capacity if fleet.capacity else float(fleet.running > 0)
    newest = history.points[-1] if history.points else None
    text = Text.assemble(
        bar(share, _BAR, "red" if share >= 1 else "green"),
        f" {fleet.running}/{fleet.capacity} running",
        (f"   {fleet.queued} waiting", "yellow" if fleet.queued else "dim"),
        (f"   {number(newest.tokens_per_s if newest else None)} tokens/s ", "bold"),
    )
    return text + spark(history.curve(lambda point: point.tokens_per_s), _room(text, width))


def _latency(history: FleetHistory, width: int) -> Text:
    newest = history.points[-1] if history.points else None
    text = Text.assemble(
        ("first token ", "dim"),
        _pair(history.first_token),
        ("   answer ", "dim"),
        _pair(history.duration),
        (f"   {number(newest.answered_per_s if newest else None)}/s ", "bold"),
    )
    return text + spark(history.curve(lambda point: point.answered_per_s), _room(text, width))


def _pair(latency: Latency) -> str:
    return f"p50 {took(latency.median_s)} p99 {took(latency.p99_s)}"


def _counts(fleet: MergedFleet, width: int) -> Text:
    counters, gap = fleet.counters, "   " if width >= _ROOMY else "  "
    refused = sum(count for name, count in counters.items() if name.startswith("rejected_"))
    text = Text(f"{number(counters['completed'])} answered")
    for count, word, style in (
        (counters["failures"], "failed", "red"),
        (refused, "refused", "yellow"),
        (counters["redispatches"], "moved", "yellow"),
        (counters["resumes"], "resumed", "cyan"),
        (counters["cancelled"], "cancelled", ""),
    ):
        if width >= _ROOMY or word != "moved":  # most of those that moved resumed
            text.append(f"{gap}{number(count)} {word}", style if count else "dim")
    if width >= _ROOMY:
        text.append(f"{gap}{sum(snapshot.clients for snapshot in snapshots(fleet.views))} clients", "dim")
    return text


def _room(text: Text, width: int) -> int:
    return min(_MOST_SPARK, width - _LABEL - text.cell_len)
