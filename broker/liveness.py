"""Who is well: the timers of each node, and what follows when it falls silent, goes away or comes back.

Losing a connection and falling silent are different: the first is seen within milliseconds and the process is probably
dead, the second may be a frozen process that wakes up again. So a lost node has a short grace and then counts as a
crash; a silent one is given up after the eviction time and does not.
"""

from __future__ import annotations

from ..protocol.snapshot import EventKind
from .counters import LossReason
from .dispatch import Dispatcher
from .leases import reindex_and_wake
from .names import depart
from .nodes import TRANSITIONS, Node, NodeEvent, NodeState
from .placement import reindex
from .requests import RequestState
from .state import BrokerState

_PRESENT = (NodeState.ACTIVE, NodeState.SUSPECT, NodeState.DRAINING)


class Liveness:
    """Moves nodes through their states."""

    __slots__ = ("_dispatcher", "_state")

    def __init__(self, state: BrokerState, dispatcher: Dispatcher) -> None:
        self._state = state
        self._dispatcher = dispatcher

    # --- what nodes do ---------------------------------------------------------------------------------------------

    def heard(self, node: Node, now: float) -> None:
        """Note a sign of life."""
        node.heard_at = now
        if node.is_stalled:
            self._suspect(node, now)
        elif node.state is NodeState.SUSPECT:
            node.move(NodeEvent.HEARD)
            self._note("recovered", node, "is heard again", now)
        self._recount(node, now)

    def drain(self, node: Node, now: float) -> bool:
        """Give a node nothing more; False if it was not taking anything."""
        if (node.state, NodeEvent.DRAIN) not in TRANSITIONS:
            return False
        node.move(NodeEvent.DRAIN)
        self._note("draining", node, f"finishes what runs ({len(node.running)}) and leaves", now)
        self._recount(node, now)
        reindex(node)
        return True

    def leave(self, node: Node, now: float) -> None:
        """Let a node go on its own word, or because of what it sends; its leases go elsewhere at once."""
        if node.state is not NodeState.LOST:
            node.move(NodeEvent.LEFT)
            self._note("left", node, "has left", now)
            self._remove(node, now, f"node {node.node_id} has left", LossReason.NODE_LEFT)

    def disconnected(self, node: Node, now: float) -> None:
        """Note that the connection of a node is gone; it has a short time to come back."""
        if node.state is NodeState.LOST:
            return
        node.move(NodeEvent.DISCONNECTED)
        self._state.nodes.pop(node.peer, None)
        if node.state is NodeState.REMOVED:
            self._remove(node, now, f"node {node.node_id} is gone", LossReason.NODE_LEFT)
            return
        self._state.counters.nodes_lost += 1
        self._note("lost", node, f"its connection broke, with {len(node.running)} running", now)
        node.lost_at = now
        self._recount(node, now)
        reindex(node)
        self._state.node_timers.set(node, now + self._state.timing.lost_grace_s)

    # --- what time does --------------------------------------------------------------------------------------------

    def watch(self, node: Node) -> None:
        """Set the timer of a node to whatever is due next."""
        timing = self._state.timing
        if node.state is NodeState.LOST:
            when = node.lost_at + timing.lost_grace_s
        elif node.state is NodeState.EVICTED:
            when = node.heard_at + timing.remove_s
        else:
            silence_s = timing.suspect_s if node.state is NodeState.ACTIVE else timing.eviction_s
            when = min(node.next_beat, node.heard_at + silence_s)
        self._state.node_timers.set(node, when)

    def check(self, node: Node, now: float) -> None:
        """Act on the timer of a node."""
        timing = self._state.timing
        silence_s = now - node.heard_at
        if node.state is NodeState.LOST:
            node.move(NodeEvent.GRACE_OVER)
            self._remove(node, now, f"node {node.node_id} was lost", LossReason.NODE_LOST)
        elif node.state is NodeState.EVICTED:
            node.move(NodeEvent.FORGOTTEN)
            self._remove(node, now, "", LossReason.NODE_SILENT)
        elif silence_s >= timing.eviction_s:
            self._evict(node, now)
        else:
            if silence_s >= timing.suspect_s:
                self._suspect(node, now)
            if node.silences and node.probe(now, is_needed=_is_needed(node)):
                reindex_and_wake(self._state, node)
            if now >= node.next_beat:
                node.next_beat = now + node.beat_every
                self.beat(node)
        if node.state is not NodeState.REMOVED:
            self.watch(node)

    def beat(self, node: Node) -> None:
        """Give a node a sign of life, and tell which of its own was the last that counts here."""
        self._state.tell_worker(node, node.heartbeat())

    def _suspect(self, node: Node, now: float) -> None:
        """Give a node no new work for now, and ask it at once."""
        if node.state is not NodeState.ACTIVE:
            return
        node.move(NodeEvent.QUIET)
        self._state.counters.nodes_suspected += 1
        what = "its engine stands still" if node.is_stalled else f"silent for {now - node.heard_at:.1f} s"
        self._note("suspect", node, f"{what}: it gets no new work", now)
        self._recount(node, now)
        reindex(node)
        self.beat(node)

    def _evict(self, node: Node, now: float) -> None:
        node.move(NodeEvent.SILENT)
        self._state.counters.nodes_evicted += 1
        self._recount(node, now)
        silence_s = self._state.timing.eviction_s
        self._note("evicted", node, f"silent for {silence_s:.1f} s: its work goes elsewhere", now)
        self._lose_all(node, now, f"node {node.node_id} was silent for {silence_s:.1f} s", LossReason.NODE_SILENT)

    # --- consequences ----------------------------------------------------------------------------------------------

    def _remove(self, node: Node, now: float, why: str, reason: LossReason) -> None:
        state = self._state
        self._recount(node, now)
        self._lose_all(node, now, why, reason)
        state.nodes.pop(node.peer, None)
        if state.nodes_by_uuid.get(node.ready.worker_uuid) is node:
            del state.nodes_by_uuid[node.ready.worker_uuid]
        state.node_timers.clear(node)
        state.parts -= 1 + node.device_parts + len(node.offers)
        for offer in node.offers.values():
            offer.service.offers.pop(node, None)
            offer.service.prefixes.forget(offer)
            if not offer.service.offers:
                depart(state, offer.service, now, may_return=True)

    def _lose_all(self, node: Node, now: float, why: str, reason: LossReason) -> None:
        """End the attempts on a node; backwards, because each goes to the very front of its queue."""
        lost = list(node.running.values())
        moved = 0
        for request in reversed(lost):
            # Whoever has made units in this attempt ran well until then: it is no more suspect than its neighbours.
            is_suspect = reason is LossReason.NODE_LOST and request.state is RequestState.LEASED
            moved += self._dispatcher.lose(request, now, why, reason, crashes=int(is_suspect))
        if moved:
            text = f"{moved} of its {len(lost)} requests go on elsewhere"
            self._state.events.note("resumed", node.node_id, text, now, lost[0].ask, count=moved)
        reindex(node)

    def _note(self, kind: EventKind, node: Node, text: str, now: float) -> None:
        self._state.events.note(kind, node.node_id, text, now)

    def _recount(self, node: Node, now: float) -> None:
        """Count a node among the healthy of its services, or no more."""
        is_usable = node.state is NodeState.ACTIVE and node.phase == "ready"
        if is_usable and not node.is_usable:
            self.count_in(node, now)
        elif node.is_usable and not is_usable:
            self.count_out(node, now)

    def count_in(self, node: Node, now: float) -> None:
        """Count a usable node in."""
        node.is_usable = node.state is NodeState.ACTIVE and node.phase == "ready"
        if node.is_usable:
            for offer in node.offers.values():
                offer.service.count_healthy(offer.spec.revision, 1, now)

    def count_out(self, node: Node, now: float) -> None:
        """Count a node out; a service that has lost its last healthy node waits for another, for a while."""
        if not node.is_usable:
            return
        node.is_usable = False
        for offer in node.offers.values():
            service = offer.service
            service.count_healthy(offer.spec.revision, -1, now)
            if not service.healthy:
                service.is_due_back = node.state not in (NodeState.DRAINING, NodeState.REMOVED)
                self._state.service_timers.set(service, now + self._state.timing.eviction_s)


def _is_needed(node: Node) -> bool:
    """Whether something waits for a node's services that no node may be given: one that was silent is a chance then."""
    return any(
        offer.service.queue.count and not any(other.is_usable and other.most for other in offer.service.offers)
        for offer in node.offers.values()
    )
