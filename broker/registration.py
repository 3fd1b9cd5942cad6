"""READY and HEARTBEAT: which nodes there are, what they offer, and how they are doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.limits import MAX_FLEET_PARTS, MAX_FLEET_SERVICES
from ..protocol.sanitize import printable
from ..protocol.snapshot import EventKind
from .bounds import CONTROL_BURST, CONTROL_RATE
from .counters import LossReason
from .dispatch import Dispatcher
from .liveness import Liveness
from .names import depart, learn
from .nodes import Node, NodeEvent, NodeState, Offer
from .placement import reindex
from .sessions import bucket
from .state import BrokerState, Side

PROOF_KEY: Final = "proof"
"""In ext of READY: a word that a node has made up, so that nobody else can come back as it."""


class Registry:
    """Takes nodes in, and keeps their offers."""

    __slots__ = ("_dispatcher", "_epoch", "_liveness", "_state")

    def __init__(self, state: BrokerState, dispatcher: Dispatcher, liveness: Liveness) -> None:
        self._state = state
        self._dispatcher = dispatcher
        self._liveness = liveness
        self._epoch = 0

    def register(self, peer: bytes, user: str, ready: m.Ready, now: float) -> Node | None:
        """Take a node in under a fresh epoch, or say why not."""
        state = self._state
        if not ready.node_id.isprintable():  # it goes to terminals and logs
            ready = msgspec.structs.replace(ready, node_id=printable(ready.node_id))
        if not ready.min_version <= m.VERSION <= ready.max_version:
            self._turn_away(peer, 426, f"this broker speaks ZRT/{m.VERSION}")
            return None
        same_session = state.nodes.get(peer)
        if same_session is not None and same_session.state is not NodeState.EVICTED:
            self._liveness.leave(same_session, now)
            self._turn_away(peer, 409, "READY came twice on this session")
            return None
        if same_session is not None and same_session.ready.worker_uuid != ready.worker_uuid:
            self._liveness.leave(same_session, now)  # evicted, and back under another name
        node = state.nodes_by_uuid.get(ready.worker_uuid)
        refusal = self._why_not(node, peer, user, ready)
        if refusal is not None:
            self._turn_away(peer, *refusal)
            return None
        lean, rebound = _lean(ready, state.bounds.node_capacity), list[m.Rebound]()
        if node is None:
            node = self._new(peer, user, lean, now)
            self._note("joined", node, f"with {_devices(len(ready.devices))}", now)
        else:
            rebound = self._return(node, peer, lean, ready.held, now)
            self._note("returned", node, f"and goes on with {len(rebound)} of its requests", now)
        self._note_twins(node, now)
        self._count_parts(node, len(ready.devices))
        state.counters.nodes_registered += 1
        self.offer(node, ready.services, now)
        state.tell_worker(node, m.WorkerWelcome(state.broker_id, state.broker_epoch, node.epoch, state.params, rebound))
        self._liveness.watch(node)
        return node

    def _why_not(self, node: Node | None, peer: bytes, user: str, ready: m.Ready) -> tuple[int, str] | None:
        """Say why a node may not register: somebody else has its uuid, or there is no room. None: it may."""
        state = self._state
        if node is not None and node.user != user:
            return 403, "this worker_uuid belongs to another principal"
        if node is not None and node.peer != peer and not _may_return(node, ready):
            state.tell_worker(node, node.heartbeat())  # if it is gone, this tells
            return 409, "a node with this worker_uuid is connected, and it registered with another ext.proof"
        if node is None and len(state.nodes_by_uuid) >= state.bounds.sessions:
            return 503, f"{state.bounds.sessions} nodes are registered already"
        more = len(ready.devices) + 1 if node is None else len(ready.devices) - node.device_parts
        if more > 0 and state.parts + more > MAX_FLEET_PARTS:
            return 503, f"nodes, devices and offers are {state.parts} already, of {MAX_FLEET_PARTS} at most"
        return None

    def _note_twins(self, node: Node, now: float) -> None:
        """Say that there is another node of the same name: whoever watches them must tell them apart."""
        others = [
            one
            for one in self._state.nodes.values()
            if one is not node and one.node_id == node.node_id and one.state is not NodeState.EVICTED
        ]
        if others:
            text = (
                f"is the name of {len(others) + 1} nodes now: all serve, metrics name them {node.node_id}@… by their "
                "uuids, and 'zmqrt drain' means all of them; give each --node-id of its own"
            )
            self._note("same_name", node, text, now)

    def _count_parts(self, node: Node, devices: int) -> None:
        self._state.parts += devices - node.device_parts
        node.device_parts = devices

    def _turn_away(self, peer: bytes, code: int, text: str) -> None:
        self._state.out.append((Side.WORKERS, peer, m.Dismiss(code, text)))

    def _new(self, peer: bytes, user: str, ready: m.Ready, now: float) -> Node:
        every_s = _spread(ready.worker_uuid) * self._state.timing.heartbeat_send_s
        node = Node(
            peer,
            user,
            ready,
            self._next_epoch(),
            now,
            now + every_s,
            every_s,
            bucket(CONTROL_RATE, CONTROL_BURST, now),
            capacity=max(1, ready.capacity),
        )
        self._state.parts += 1
        self._state.nodes[peer] = node
        self._state.nodes_by_uuid[ready.worker_uuid] = node
        return node

    def _return(self, node: Node, peer: bytes, ready: m.Ready, held: Sequence[m.Held], now: float) -> list[m.Rebound]:
        """Take a node back: it keeps the leases that it still holds and that are still its own."""
        state = self._state
        if node.peer != peer and node.state not in (NodeState.LOST, NodeState.EVICTED):
            state.tell_worker(node, m.Dismiss(409, "this node has registered on another connection"))
        state.nodes.pop(node.peer, None)
        state.nodes[peer] = node
        node.move(NodeEvent.RETURNED)
        node.peer, node.ready, node.epoch = peer, ready, self._next_epoch()
        node.heard_at = now
        node.next_beat = now + node.beat_every
        node.dispatched = node.limit = node.announced_limit = 0
        node.capacity, node.phase, node.beat = max(1, ready.capacity), "starting", None
        node.is_stalled = False
        node.device_statuses = None
        node.fenced.clear()
        return self._rebind(node, held, now)

    def _rebind(self, node: Node, held: Sequence[m.Held], now: float) -> list[m.Rebound]:
        claimed = {one.lease: one for one in held}
        rebound: list[m.Rebound] = []
        for lease, request in reversed(list(node.running.items())):
            claim = claimed.get(lease)
            if claim is not None and claim.rid == request.ask.rid and claim.n >= request.next_n:
                rebound.append(m.Rebound(lease, request.next_n))
                self._state.counters.leases_rebound += 1
            else:
                why = f"node {node.node_id} came back without it"
                self._dispatcher.lose(request, now, why, LossReason.NODE_RETURNED)
        rebound.reverse()
        return rebound

    def _next_epoch(self) -> int:
        self._epoch += 1
        return self._epoch

    def beat(self, node: Node, beat: m.Heartbeat, now: float) -> None:
        """Take a heartbeat: phase, load, credit, and what the node offers if that has changed."""
        if beat.epoch != node.epoch:
            return
        self._note_news(node, beat, now)
        is_news = beat.services is not None or beat.phase != node.phase
        node.hear_load(self._lean_beat(node, beat), now)
        node.is_stalled = beat.loop_age_ms > self._state.timing.heartbeat_s * 1000
        node.allow(beat.dispatch_limit)
        if beat.services is not None:
            self.offer(node, beat.services, now)
        if beat.phase == "draining":
            self._liveness.drain(node, now)
        if is_news:
            self._liveness.beat(node)  # at once: the node tells nobody that it serves before it is known here

    def _lean_beat(self, node: Node, beat: m.Heartbeat) -> m.Heartbeat:
        """Return what is kept of a heartbeat: no more devices than there is room for, and nothing that nobody reads."""
        devices = beat.devices
        if len(devices) > node.device_parts:
            room = MAX_FLEET_PARTS - self._state.parts
            devices = devices[: node.device_parts + max(0, room)]
            self._count_parts(node, max(len(devices), node.device_parts))
        if any(device.ext for device in devices):
            devices = [msgspec.structs.replace(device, ext={}) for device in devices]
        return msgspec.structs.replace(beat, devices=devices, services=None, ext={})

    def _note_news(self, node: Node, beat: m.Heartbeat, now: float) -> None:
        """Write down what an operator waits for, or should look at."""
        if beat.phase == "ready" and not node.was_ready:
            node.was_ready = True
            self._note("ready", node, f"after {beat.elapsed_ms / 1000:.0f} s", now)
        elif beat.phase == "failed" != node.phase:
            self._note("failed", node, "cannot serve; see its log", now)
        before = sum(device.restarts for device in node.beat.devices) if node.beat is not None else 0
        restarts = sum(device.restarts for device in beat.devices)
        if restarts > before and node.beat is not None:
            self._state.events.note(
                "restarted", node.node_id, "an engine process ended and is started again", now, count=restarts - before
            )

    def _note(self, kind: EventKind, node: Node, text: str, now: float) -> None:
        self._state.events.note(kind, node.node_id, text, now)

    def offer(self, node: Node, specs: Sequence[m.ServiceOffer], now: float) -> None:
        """Replace what a node offers."""
        self._liveness.count_out(node, now)
        names = {one.service for one in specs}
        for name in [name for name in node.offers if name not in names]:
            self._withdraw(node.offers.pop(name), now)
        refused = [one.service for one in specs if not self._take_offer(node, one)]
        if refused:
            text = (
                f"offers too much: {refused[0]!r} and {len(refused) - 1} more are not taken; a broker knows "
                f"{MAX_FLEET_SERVICES} models and {MAX_FLEET_PARTS} nodes, devices and offers at most"
            )
            self._note("failed", node, text, now)
        self._liveness.count_in(node, now)
        reindex(node)

    def _take_offer(self, node: Node, spec: m.ServiceOffer) -> bool:
        state = self._state
        offer = node.offers.get(spec.service)
        if offer is None:
            service = learn(state, spec.service) if state.parts < MAX_FLEET_PARTS else None
            if service is None:
                return False
            state.parts += 1
            offer = node.offers[spec.service] = service.offers[node] = Offer(node, service, spec, 0)
        offer.service.spec = offer.spec = spec
        offer.max_inflight = spec.max_inflight
        return True

    def _withdraw(self, offer: Offer, now: float) -> None:
        """Take back one offer of a node that stays: of a service that it alone had, nobody waits for it to return."""
        service = offer.service
        service.load_index.put(offer, -1)
        service.prefixes.forget(offer)
        service.offers.pop(offer.node, None)
        self._state.parts -= 1
        if not service.healthy:
            service.is_due_back = False
        if not service.offers:
            depart(self._state, service, now, may_return=False)


def _lean(ready: m.Ready, most: int) -> m.Ready:
    """Return what is kept of READY: what it claims within bounds, and nothing that nobody reads again."""
    devices = [msgspec.structs.replace(device, ext={}) for device in ready.devices]
    capacity = min(ready.capacity, most)
    proof = ready.ext.get(PROOF_KEY)
    ext: m.Ext = {PROOF_KEY: proof} if isinstance(proof, str) else {}
    return msgspec.structs.replace(ready, capacity=capacity, services=[], devices=devices, held=[], ext=ext)


def _may_return(node: Node, ready: m.Ready) -> bool:
    """Whether another connection may go on as this node.

    A uuid is no secret (`status` tells it), and a key may be shared. So while the node is connected, only who brings
    the proof that it came with can come back as it.
    """
    if node.state in (NodeState.LOST, NodeState.EVICTED):
        return True
    proof = node.ready.ext.get(PROOF_KEY)
    return proof is not None and proof == ready.ext.get(PROOF_KEY)


def _devices(number: int) -> str:
    return f"{number} device" if number == 1 else f"{number} devices"


def _spread(worker_uuid: bytes) -> float:
    """Return 0.9 to 1.1, different for each node: ten percent of jitter without asking for chance."""
    return 0.9 + 0.2 * worker_uuid[-1] / 255
