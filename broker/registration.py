"""READY and HEARTBEAT: which nodes there are, what they offer, and how they are doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.limits import MAX_FLEET_PARTS, MAX_FLEET_SERVICES
from ..protocol.sanitize import printable
from .availability import depart, learn
from .bounds import CONTROL_BURST, CONTROL_RATE
from .counters import LossReason
from .dispatch import lose
from .liveness import (
    come_back,
    count_in,
    count_out,
    count_parts,
    drain,
    leave,
    record,
    send_heartbeat,
    take_name,
    watch,
)
from .nodes import Node, NodeState, Offer
from .rate_limits import full_bucket
from .state import BrokerState, Side

PROOF_KEY: Final = "proof"
"""In ext of READY: a word that a node has made up, so that nobody else can come back as it."""


def register(state: BrokerState, peer: bytes, user: str, ready: m.Ready, now: float) -> Node | None:
    """Take a node in under a fresh epoch, or say why not."""
    if not ready.node_id.isprintable():  # it goes to terminals and logs
        ready = msgspec.structs.replace(ready, node_id=printable(ready.node_id))
    if not ready.min_version <= m.VERSION <= ready.max_version:
        _turn_away(state, peer, 426, f"this broker speaks ZRT/{m.VERSION}")
        return None
    same_session = state.nodes.get(peer)
    if same_session is not None and same_session.state is not NodeState.EVICTED:
        leave(state, same_session, now)
        _turn_away(state, peer, 409, "READY came twice on this session")
        return None
    if same_session is not None and same_session.ready.worker_uuid != ready.worker_uuid:
        leave(state, same_session, now)  # evicted, and back under another name
    node = state.nodes_by_uuid.get(ready.worker_uuid)
    refusal = _why_not(state, node, peer, user, ready)
    if refusal is not None:
        _turn_away(state, peer, *refusal)
        return None
    lean, rebound = _lean(ready, state.bounds.node_capacity), list[m.Rebound]()
    if node is None:
        node = _new(state, peer, user, lean, now)
        record(state, "joined", node, f"with {_devices(len(ready.devices))}", now)
    else:
        come_back(state, node, peer, lean, now)
        rebound = _rebind(state, node, ready.held, now)
        record(state, "returned", node, f"and goes on with {len(rebound)} of its requests", now)
    _note_same_name(state, node, now)
    _count_parts(state, node, len(ready.devices))
    state.counters.nodes_registered += 1
    _replace_offers(state, node, ready.services, now)
    state.tell_worker(node, m.WorkerWelcome(state.broker_id, state.broker_epoch, node.epoch, state.params, rebound))
    watch(state, node)
    return node


def _why_not(state: BrokerState, node: Node | None, peer: bytes, user: str, ready: m.Ready) -> tuple[int, str] | None:
    """Say why a node may not register: somebody else has its uuid, or there is no room. None: it may."""
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


def _note_same_name(state: BrokerState, node: Node, now: float) -> None:
    """Say that there is another node of the same name: whoever watches them must tell them apart."""
    others = [
        other
        for other in state.nodes_by_name[node.node_id]
        if other is not node and other.state not in (NodeState.LOST, NodeState.EVICTED)
    ]
    if others:
        text = (
            f"is the name of {len(others) + 1} nodes now: all serve, metrics name them {node.node_id}@… by their "
            "uuids, and 'zmqrt drain' means all of them; give each --node-id of its own"
        )
        record(state, "same_name", node, text, now)


def _count_parts(state: BrokerState, node: Node, devices: int) -> None:
    count_parts(state, devices - node.device_parts)
    node.device_parts = devices


def _turn_away(state: BrokerState, peer: bytes, code: int, text: str) -> None:
    state.out.append((Side.WORKERS, peer, m.Dismiss(code, text)))


def _new(state: BrokerState, peer: bytes, user: str, ready: m.Ready, now: float) -> Node:
    every_s = _spread(ready.worker_uuid) * state.timing.heartbeat_send_s
    node = Node(
        peer,
        user,
        ready,
        next(state.epochs),
        now,
        now + every_s,
        every_s,
        full_bucket(CONTROL_RATE, CONTROL_BURST, now),
        capacity=max(1, ready.capacity),
    )
    count_parts(state, 1)
    state.nodes[peer] = node
    state.nodes_by_uuid[ready.worker_uuid] = node
    take_name(state, node)
    return node


def _rebind(state: BrokerState, node: Node, held: Sequence[m.Held], now: float) -> list[m.Rebound]:
    claims = {claim.lease: claim for claim in held}
    rebound: list[m.Rebound] = []
    for lease in reversed(list(node.running)):
        request, claim = state.leases[lease], claims.get(lease)
        if claim is not None and claim.rid == request.ask.rid and claim.n >= request.next_n:
            rebound.append(m.Rebound(lease, request.next_n))
            state.counters.leases_rebound += 1
        else:
            why = f"node {node.node_id} came back without it"
            lose(state, request, now, why, LossReason.NODE_RETURNED)
    rebound.reverse()
    return rebound


def take_heartbeat(state: BrokerState, node: Node, beat: m.Heartbeat, now: float) -> None:
    """Take a heartbeat: phase, load, credit, and what the node offers if that has changed."""
    if beat.epoch != node.epoch:
        return
    _record_news(state, node, beat, now)
    is_news = beat.services is not None or beat.phase != node.phase
    node.hear_load(_lean_beat(state, node, beat), state.timing.heartbeat_s, now)
    node.allow(beat.dispatch_limit)
    if beat.services is not None:
        _replace_offers(state, node, beat.services, now)
    if beat.phase == "draining":
        drain(state, node, now)
    if is_news:
        send_heartbeat(state, node)  # at once: the node tells nobody that it serves before it is known here


def _lean_beat(state: BrokerState, node: Node, beat: m.Heartbeat) -> m.Heartbeat:
    """Return what is kept of a heartbeat: no more devices than there is room for, and nothing that nobody reads."""
    devices = beat.devices
    if len(devices) > node.device_parts:
        room = MAX_FLEET_PARTS - state.parts
        devices = devices[: node.device_parts + max(0, room)]
        _count_parts(state, node, max(len(devices), node.device_parts))
    if any(device.ext for device in devices):
        devices = [msgspec.structs.replace(device, ext={}) for device in devices]
    return msgspec.structs.replace(beat, devices=devices, services=None, ext={})


def _record_news(state: BrokerState, node: Node, beat: m.Heartbeat, now: float) -> None:
    """Write down what an operator waits for, or should look at."""
    if beat.phase == "ready" and not node.was_ready:
        node.was_ready = True
        record(state, "ready", node, f"after {beat.elapsed_ms / 1000:.0f} s", now)
    elif beat.phase == "failed" != node.phase:
        record(state, "failed", node, "cannot serve; see its log", now)
    known = {f"{device.id}: {device.fallback}" for device in (node.beat.devices if node.beat is not None else [])}
    fallbacks = [f"{device.id}: {device.fallback}" for device in beat.devices if device.fallback]
    # One event for all: of those of one kind within a second the last one stays.
    if news := [words for words in fallbacks if words not in known]:
        record(state, "fallback", node, "; ".join(news), now)
    before = sum(device.restarts for device in node.beat.devices) if node.beat is not None else 0
    restarts = sum(device.restarts for device in beat.devices)
    if restarts > before and node.beat is not None:
        state.events.record(
            "restarted", node.node_id, "an engine process ended and is started again", now, count=restarts - before
        )


def _replace_offers(state: BrokerState, node: Node, specs: Sequence[m.ServiceOffer], now: float) -> None:
    """Replace what a node offers."""
    count_out(state, node, now)
    names = {spec.service for spec in specs}
    for name in [name for name in node.offers if name not in names]:
        _withdraw(state, node, name, now)
    refused = [spec.service for spec in specs if not _take_offer(state, node, spec)]
    if refused:
        text = (
            f"offers too much: {refused[0]!r} and {len(refused) - 1} more are not taken; a broker knows "
            f"{MAX_FLEET_SERVICES} models and {MAX_FLEET_PARTS} nodes, devices and offers at most"
        )
        record(state, "failed", node, text, now)
    count_in(state, node, now)


def _take_offer(state: BrokerState, node: Node, spec: m.ServiceOffer) -> bool:
    offer = node.offers.get(spec.service)
    service = state.services.get(spec.service)
    if offer is None or service is None:
        service = learn(state, spec.service) if state.parts < MAX_FLEET_PARTS else None
        if service is None:
            return False
        count_parts(state, 1)
        offer = node.offers[spec.service] = service.offers[node] = Offer(node, spec)
    service.spec = spec
    offer.renew(spec)
    return True


def _withdraw(state: BrokerState, node: Node, name: str, now: float) -> None:
    """Take back one offer of a node that stays: of a service that it alone had, nobody waits for it to return."""
    service = state.services[name]
    service.withdraw(node, node.offers.pop(name))
    count_parts(state, -1)
    if not service.healthy:
        service.expect_nobody()
    if not service.offers:
        depart(state, service, now, may_return=False)


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
