"""The broker's state as others see it: the answer to QUERY."""

from __future__ import annotations

from collections.abc import Iterable

from ..protocol import messages as m
from ..protocol import snapshot as s
from .bounds import QUERY_RATE
from .house import House, counters_as_dict
from .services import Service
from .workers import Node, NodeState

_FRESH_S = 0.1
"""A snapshot this young is sent again: many who ask at once cost no more than one."""
_HEALTH: dict[NodeState, s.Health] = {
    NodeState.ACTIVE: "active",
    NodeState.SUSPECT: "suspect",
    NodeState.DRAINING: "draining",
    NodeState.LOST: "lost",
    NodeState.EVICTED: "evicted",
}


class Board:
    """Answers questions; keeps each answer for a moment."""

    __slots__ = ("_answers", "_house")

    def __init__(self, house: House) -> None:
        self._house = house
        self._answers: dict[str, tuple[float, bytes]] = {}

    def answer(self, query: m.Query, now: float) -> m.Status:
        """Answer `status` (everything), `services` (without nodes); anything else gets an empty body."""
        if query.what not in ("status", "services"):
            return m.Status(query.qid, "unknown", 0, b"", {"text": "known: status, services"})
        made_at, body = self._answers.get(query.what, (-_FRESH_S, b""))
        if now - made_at >= _FRESH_S:
            body = s.encode(snapshot(self._house, now, with_nodes=query.what == "status"))
            self._answers[query.what] = (now, body)
        return m.Status(query.qid, s.SCHEMA, s.SCHEMA_VERSION, body)

    def put_off(self, query: m.Query) -> m.Status:
        """Answer who asks too often: when to ask again. Whoever does not wait floods."""
        return m.Status(query.qid, s.LATER, s.SCHEMA_VERSION, b"", {"retry_after_ms": int(10_000 / QUERY_RATE)})


def snapshot(house: House, now: float, *, with_nodes: bool = True) -> s.Snapshot:
    """Describe everything."""
    nodes = house.nodes_by_uuid.values()
    services = [service for service in house.services.values() if service.told is not None]
    return s.Snapshot(
        broker_id=house.broker_id,
        broker_epoch=house.broker_epoch,
        uptime_s=now - house.started_at,
        ready=not house.is_draining and any(service.healthy for service in services),
        draining=house.is_draining,
        clients=len(house.sessions),
        queued=sum(service.queue.count for service in services),
        running=sum(service.running for service in services),
        nodes=[_node(node, now) for node in nodes] if with_nodes else [],
        services=[_service(service, nodes) for service in services],
        counters=counters_as_dict(house.counters),
    )


def _node(node: Node, now: float) -> s.NodeStatus:
    beat = node.beat
    running = len(node.running)
    return s.NodeStatus(
        node_id=node.node_id,
        worker_uuid=node.ready.worker_uuid.hex(),
        health=_HEALTH[node.state],
        phase=node.phase,
        percent=beat.percent if beat else 0,
        elapsed_s=beat.elapsed_ms / 1000 if beat else 0.0,
        heartbeat_age_s=now - node.heard_at,
        capacity=node.capacity,
        in_flight=running,
        load=running / (node.capacity or 1),
        completed=node.completed,
        failed=node.failed,
        services=list(node.offers),
        devices=_devices(node),
    )


def _devices(node: Node) -> list[s.DeviceStatus]:
    told = {device.id: device for device in node.ready.devices}
    loads = list(node.beat.devices) if node.beat else []
    reported = {load.id for load in loads}
    loads += [m.DeviceLoad(device_id, "starting") for device_id in told if device_id not in reported]
    return [_device(load, told.get(load.id) or m.DeviceInfo(load.id, "")) for load in loads]


def _device(load: m.DeviceLoad, info: m.DeviceInfo) -> s.DeviceStatus:
    return s.DeviceStatus(
        id=load.id,
        kind=info.kind,
        name=info.name,
        memory_bytes=info.memory_bytes,
        phase=load.phase,
        percent=load.percent,
        elapsed_s=load.elapsed_ms / 1000,
        capacity=load.capacity,
        running=load.running,
        waiting=load.waiting,
        kv_percent=load.kv_percent,
        loop_age_s=load.loop_age_ms / 1000,
        steps=load.steps,
        tokens=load.tokens,
        largest_batch=load.largest_batch,
        restarts=load.restarts,
        prompt_tokens=load.prompt_tokens,
        reused_tokens=load.reused_tokens,
        memory_used_bytes=load.memory_used_bytes,
        busy_percent=load.busy_percent,
        celsius=load.celsius,
    )


def _service(service: Service, nodes: Iterable[Node]) -> s.ServiceStatus:
    told = service.told
    assert told is not None
    able = [node for node in nodes if node.is_usable and service.name in node.offers]
    return s.ServiceStatus(
        service=service.name,
        task=told.task,
        model=told.model,
        revision=told.revision,
        context=told.context,
        nodes=len(able),
        capacity=sum(min(node.capacity, node.offers[service.name].max_inflight) for node in able),
        queued=service.queue.count,
        running=service.running,
    )
