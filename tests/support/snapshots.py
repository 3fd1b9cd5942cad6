"""Snapshots of brokers: a fleet that is well, with the fields that a test names set otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from zmqrt.protocol.snapshot import (
    DeviceStatus,
    EventLevel,
    FleetEvent,
    NodeStatus,
    RequestPhase,
    RequestStatus,
    ServiceStatus,
    Snapshot,
)

EMPTY = Snapshot(
    broker_id="b",
    broker_epoch=1,
    uptime_s=1.0,
    ready=True,
    draining=False,
    clients=1,
    queued=0,
    running=0,
    nodes=[],
    services=[],
    counters={},
)
DEVICE = DeviceStatus(
    id="dev",
    kind="cpu",
    name="",
    memory_bytes=0,
    phase="ready",
    percent=100,
    elapsed_s=0.0,
    capacity=8,
    running=2,
    waiting=0,
    kv_percent=10,
    loop_age_s=0.0,
    steps=1,
    tokens=0,
    largest_batch=2,
    restarts=0,
)
_NODE = NodeStatus(
    node_id="n",
    worker_uuid="uuid-n",
    health="active",
    phase="ready",
    percent=100,
    elapsed_s=1.0,
    heartbeat_age_s=0.5,
    capacity=8,
    in_flight=2,
    load=0.25,
    completed=3,
    failed=0,
    services=["m"],
    devices=[DEVICE],
)
_SERVICE = ServiceStatus(
    service="m", task="generate", model="m", revision="r1", context=64, nodes=1, capacity=8, queued=0, running=2
)


def snapshot(*nodes: NodeStatus, services: Sequence[ServiceStatus] = (), **fields: Any) -> Snapshot:
    """Describe a broker."""
    return msgspec.structs.replace(EMPTY, nodes=list(nodes), services=list(services), **fields)


def node(name: str = "n", *, tokens: int = 0, device: str = "dev", **fields: Any) -> NodeStatus:
    """Describe a node that is ready and has one device."""
    devices = [msgspec.structs.replace(DEVICE, id=device, tokens=tokens)]
    known: dict[str, Any] = {"worker_uuid": f"uuid-{name}", "devices": devices, **fields}
    return msgspec.structs.replace(_NODE, node_id=name, **known)


def service(name: str = "m", **fields: Any) -> ServiceStatus:
    """Describe a model."""
    return msgspec.structs.replace(_SERVICE, service=name, **{"model": name, **fields})


def event(number: int, text: str = "something", *, kind: Any = "joined", level: EventLevel = "info") -> FleetEvent:
    """Describe an event at a time that is its number."""
    return FleetEvent(id=number, at_s=float(number), level=level, kind=kind, subject=f"n{number}", text=text)


def request(name: str, *, age_s: float = 1.0, phase: RequestPhase = "streaming", node_id: str = "a") -> RequestStatus:
    """Describe a live request."""
    rid = name.encode().hex().ljust(32, "0")
    return RequestStatus(
        rid=rid, request_id=name, service="m", phase=phase, age_s=age_s, node=node_id, units=5, losses=0
    )


def many(count: int, devices: int = 1) -> Snapshot:
    """Describe a large fleet."""
    several = [msgspec.structs.replace(DEVICE, id=f"cuda:{index}") for index in range(devices)]
    return snapshot(*(node(f"node-{number:02}", devices=several) for number in range(count)))
