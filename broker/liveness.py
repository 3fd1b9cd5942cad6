"""Decides which nodes are alive: a timer for each, and what follows when one falls silent, is lost or comes back.

Theory of operation
    A lost connection and silence are different signs. A lost connection is seen within milliseconds, and its process is
    probably dead: it gets `lost_grace_s` (1 s) to come back and claim its leases, and its end counts as a crash for the
    requests that had begun nothing. A silent node may be a frozen process that wakes up again, so silence has steps:

    * `suspect_s` (a heartbeat interval and a bit; both sides beat twice in one, so at least two were missed): no new
      work, and one question. It is sound again at its next message.
    * `eviction_s`: its leases go elsewhere, with fresh ones, so that whatever it still sends is dropped. This is no
      crash: the requests did not end the process.
    * `remove_s` (twice that): it is forgotten, and has to register anew.

    A node whose heartbeats say that its engine's loop stands still is suspect too: its agent lives, its model does not.
"""

from __future__ import annotations

from ..protocol import messages as m
from ..protocol.snapshot import EventKind
from .availability import depart
from .counters import LossReason
from .dispatch import lose
from .nodes import TRANSITIONS, Node, NodeEvent, NodeState
from .requests import LEASED
from .state import BrokerState, milliseconds

# --- what nodes do ---------------------------------------------------------------------------------------------------


def hear(state: BrokerState, node: Node, now: float) -> None:
    """Note a sign of life."""
    node.heard_at = now
    if node.is_stalled:
        _suspect(state, node, now)
    elif node.state is NodeState.SUSPECT:
        node.move(NodeEvent.HEARD)
        record(state, "recovered", node, "is heard again", now)
    if (node.state is NodeState.ACTIVE and node.phase == "ready") is not node.is_usable:
        _recount(state, node, now)
    state.touched[node] = None


def drain(state: BrokerState, node: Node, now: float) -> bool:
    """Give a node nothing more; False if it was not taking anything."""
    if (node.state, NodeEvent.DRAIN) not in TRANSITIONS:
        return False
    node.move(NodeEvent.DRAIN)
    record(state, "draining", node, f"finishes what runs ({len(node.running)}) and leaves", now)
    _recount(state, node, now)
    return True


def ask_to_drain(state: BrokerState, node: Node, now: float) -> bool:
    """Ask a node to finish and leave; False if it is not one that could."""
    if not drain(state, node, now):
        return False
    state.tell_worker(node, m.Drain(milliseconds(state.timing.drain_s)))
    return True


def leave(state: BrokerState, node: Node, now: float) -> None:
    """Let a node go on its own word, or because of what it sends; its leases go elsewhere at once."""
    if node.state is not NodeState.LOST:
        node.move(NodeEvent.LEFT)
        record(state, "left", node, "has left", now)
        _remove(state, node, now, f"node {node.node_id} has left", LossReason.NODE_LEFT)


def disconnect(state: BrokerState, node: Node, now: float) -> None:
    """Note that the connection of a node is gone; it has a short time to come back."""
    if node.state is NodeState.LOST:
        return
    node.move(NodeEvent.DISCONNECTED)
    state.nodes.pop(node.peer, None)
    if node.state is NodeState.REMOVED:
        _remove(state, node, now, f"node {node.node_id} is gone", LossReason.NODE_LEFT)
        return
    state.counters.nodes_lost += 1
    record(state, "lost", node, f"its connection broke, with {len(node.running)} running", now)
    node.lost_at = now
    _recount(state, node, now)
    state.node_timers.set(node, now + state.timing.lost_grace_s)


def come_back(state: BrokerState, node: Node, peer: bytes, ready: m.Ready, now: float) -> None:
    """Take a node back, under a fresh epoch, over this connection."""
    if node.peer != peer and node.state not in (NodeState.LOST, NodeState.EVICTED):
        state.tell_worker(node, m.Dismiss(409, "this node has registered on another connection"))
    state.nodes.pop(node.peer, None)
    state.nodes[peer] = node
    drop_name(state, node)
    node.come_back(peer, ready, next(state.epochs))
    take_name(state, node)
    node.heard_at = now
    node.next_beat = now + node.beat_every


def take_name(state: BrokerState, node: Node) -> None:
    """Note that a node goes by its name."""
    state.nodes_by_name.setdefault(node.node_id, {})[node] = None


def drop_name(state: BrokerState, node: Node) -> None:
    """Note that a node goes by its name no more."""
    namesakes = state.nodes_by_name[node.node_id]
    namesakes.pop(node, None)
    if not namesakes:
        del state.nodes_by_name[node.node_id]


# --- what time does --------------------------------------------------------------------------------------------------


def watch(state: BrokerState, node: Node) -> None:
    """Set the timer of a node to whatever is due next."""
    timing = state.timing
    if node.state is NodeState.LOST:
        when = node.lost_at + timing.lost_grace_s
    elif node.state is NodeState.EVICTED:
        when = node.heard_at + timing.remove_s
    else:
        silence_s = timing.suspect_s if node.state is NodeState.ACTIVE else timing.eviction_s
        when = min(node.next_beat, node.heard_at + silence_s)
    state.node_timers.set(node, when)


def check(state: BrokerState, node: Node, now: float) -> None:
    """Act on the timer of a node."""
    timing = state.timing
    silence_s = now - node.heard_at
    if node.state is NodeState.LOST:
        node.move(NodeEvent.GRACE_OVER)
        _remove(state, node, now, f"node {node.node_id} was lost", LossReason.NODE_LOST)
    elif node.state is NodeState.EVICTED:
        node.move(NodeEvent.FORGOTTEN)
        _remove(state, node, now, "", LossReason.NODE_SILENT)
    elif silence_s >= timing.eviction_s:
        _evict(state, node, now)
    else:
        if silence_s >= timing.suspect_s:
            _suspect(state, node, now)
        if node.silences and node.probe(now, is_needed=_is_needed(state, node)):
            state.touched[node] = None
        if now >= node.next_beat:
            node.next_beat = now + node.beat_every
            send_heartbeat(state, node)
    if node.state is not NodeState.REMOVED:
        watch(state, node)


def send_heartbeat(state: BrokerState, node: Node) -> None:
    """Give a node a sign of life, and tell which of its own was the last that counts here."""
    state.tell_worker(node, node.heartbeat())


def _suspect(state: BrokerState, node: Node, now: float) -> None:
    """Give a node no new work for now, and ask it at once."""
    if node.state is not NodeState.ACTIVE:
        return
    node.move(NodeEvent.QUIET)
    state.counters.nodes_suspected += 1
    what = "its engine stands still" if node.is_stalled else f"silent for {now - node.heard_at:.1f} s"
    record(state, "suspect", node, f"{what}: it gets no new work", now)
    _recount(state, node, now)
    send_heartbeat(state, node)


def _evict(state: BrokerState, node: Node, now: float) -> None:
    node.move(NodeEvent.SILENT)
    state.counters.nodes_evicted += 1
    _recount(state, node, now)
    silence_s = state.timing.eviction_s
    record(state, "evicted", node, f"silent for {silence_s:.1f} s: its work goes elsewhere", now)
    _lose_all(state, node, now, f"node {node.node_id} was silent for {silence_s:.1f} s", LossReason.NODE_SILENT)


# --- consequences ----------------------------------------------------------------------------------------------------


def _remove(state: BrokerState, node: Node, now: float, why: str, reason: LossReason) -> None:
    _recount(state, node, now)
    _lose_all(state, node, now, why, reason)
    state.nodes.pop(node.peer, None)
    if state.nodes_by_uuid.get(node.ready.worker_uuid) is node:
        del state.nodes_by_uuid[node.ready.worker_uuid]
    drop_name(state, node)
    state.node_timers.clear(node)
    count_parts(state, -(1 + node.device_parts + len(node.offers)))
    for name, offer in node.offers.items():
        service = state.services[name]
        service.withdraw(node, offer)
        if not service.offers:
            depart(state, service, now, may_return=True)
    node.offers.clear()


def _lose_all(state: BrokerState, node: Node, now: float, why: str, reason: LossReason) -> None:
    """End the attempts on a node; backwards, because each goes to the very front of its queue."""
    lost = [state.leases[lease] for lease in node.running]
    moved = 0
    for request in reversed(lost):
        # Whoever has made units in this attempt ran well until then: it is no more suspect than its neighbours.
        is_suspect = reason is LossReason.NODE_LOST and request.state is LEASED
        moved += lose(state, request, now, why, reason, crashes=int(is_suspect))
    if moved:
        text = f"{moved} of its {len(lost)} requests go on elsewhere"
        state.events.record("resumed", node.node_id, text, now, lost[0].ask, count=moved)


def record(state: BrokerState, kind: EventKind, node: Node, text: str, now: float) -> None:
    """Record that something happened to a node."""
    state.events.record(kind, node.node_id, text, now)


def count_parts(state: BrokerState, change: int) -> None:
    """Count nodes, devices and offers in or out; MAX_FLEET_PARTS bounds them."""
    state.parts += change


def _recount(state: BrokerState, node: Node, now: float) -> None:
    """Count a node among the healthy of its services, or no more."""
    is_usable = node.state is NodeState.ACTIVE and node.phase == "ready"
    if is_usable and not node.is_usable:
        count_in(state, node, now)
    elif node.is_usable and not is_usable:
        count_out(state, node, now)


def count_in(state: BrokerState, node: Node, now: float) -> None:
    """Count a usable node in."""
    node.is_usable = node.state is NodeState.ACTIVE and node.phase == "ready"
    state.touched[node] = None
    if node.is_usable:
        for name, offer in node.offers.items():
            state.services[name].count_healthy(offer.supply, 1, now)


def count_out(state: BrokerState, node: Node, now: float) -> None:
    """Count a node out; a service that has lost its last healthy node waits for another, for a while."""
    if not node.is_usable:
        return
    node.is_usable = False
    state.touched[node] = None
    for name, offer in node.offers.items():
        service = state.services[name]
        service.count_healthy(offer.supply, -1, now)
        if not service.healthy:
            if node.state in (NodeState.DRAINING, NodeState.REMOVED):
                service.expect_nobody()
            else:
                service.expect_back()
            state.service_timers.set(service, now + state.timing.eviction_s)


def _is_needed(state: BrokerState, node: Node) -> bool:
    """Whether something waits for a node's services that no node may be given: one that was silent is a chance then."""
    services = [state.services[name] for name in node.offers]
    return any(
        service.queue.count and not any(other.is_usable and other.most for other in service.offers)
        for service in services
    )
