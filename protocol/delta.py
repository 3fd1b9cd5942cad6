"""What changed between two snapshots of one broker: a monitor that has the earlier one needs no more.

`apply(old, difference(old, new)) == new`. Nodes that were not heard from since only grow older, which their reader
works out for itself; devices, the greater part of a snapshot, are told when a heartbeat changed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from .snapshot import MAX_EVENTS, DeviceStatus, FleetEvent, NodeStatus, RequestStatus, ServiceStatus, Snapshot

SCHEMA: Final = "delta"
V = TypeVar("V")


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """The body of STATUS in the schema "delta".

    Attributes:
        since: Serial of the snapshot it changes.
        nodes: Those that have changed or joined, without their devices.
        devices: By worker_uuid, where they have changed.
        gone: Nodes, by worker_uuid, that are no more.
        events: New ones, and those that were counted up.
    """

    since: int
    serial: int
    uptime_s: float
    unix_s: float
    ready: bool
    draining: bool
    clients: int
    queued: int
    running: int
    nodes: list[NodeStatus]
    devices: dict[str, list[DeviceStatus]]
    gone: list[str]
    services: list[ServiceStatus]
    services_gone: list[str]
    counters: dict[str, int]
    tallies: dict[str, dict[str, int]]
    requests: list[RequestStatus]
    events: list[FleetEvent]


def difference(old: Snapshot, new: Snapshot) -> Delta:
    """Return what makes `new` out of `old`. Both are of one broker process."""
    nodes, services = _by_uuid(old), {one.service: one for one in old.services}
    events = {event.id: event for event in old.events}
    now_there = {node.worker_uuid for node in new.nodes}
    names = {one.service for one in new.services}
    return Delta(
        since=old.serial,
        serial=new.serial,
        uptime_s=new.uptime_s,
        unix_s=new.unix_s,
        ready=new.ready,
        draining=new.draining,
        clients=new.clients,
        queued=new.queued,
        running=new.running,
        nodes=[_bare(node) for node in new.nodes if _is_changed(nodes.get(node.worker_uuid), node)],
        devices={
            node.worker_uuid: node.devices
            for node in new.nodes
            if (before := nodes.get(node.worker_uuid)) is None or before.devices != node.devices
        },
        gone=[uuid for uuid in nodes if uuid not in now_there],
        services=[one for one in new.services if services.get(one.service) != one],
        services_gone=[name for name in services if name not in names],
        counters=_changed(old.counters, new.counters),
        tallies=_changed(old.tallies, new.tallies),
        requests=new.requests,
        events=[event for event in new.events if events.get(event.id) != event],
    )


def apply(old: Snapshot, delta: Delta) -> Snapshot:
    """Return the newer snapshot. Raises ValueError if the delta is not about the older one."""
    if delta.since != old.serial:
        raise ValueError(f"the delta is about state {delta.since}, not {old.serial}")
    return msgspec.structs.replace(
        old,
        serial=delta.serial,
        uptime_s=delta.uptime_s,
        unix_s=delta.unix_s,
        ready=delta.ready,
        draining=delta.draining,
        clients=delta.clients,
        queued=delta.queued,
        running=delta.running,
        nodes=_nodes(old, delta),
        services=_services(old.services, delta),
        counters={**old.counters, **delta.counters},
        tallies={**old.tallies, **delta.tallies},
        requests=delta.requests,
        events=_events(old.events, delta.events),
    )


def encode(delta: Delta) -> bytes:
    """Pack the body of a STATUS."""
    return _encoder.encode(delta)


def decode(body: bytes) -> Delta:
    """Unpack it. Raises msgspec.DecodeError."""
    return _decoder.decode(body)


def by_name(nodes: Iterable[NodeStatus]) -> list[NodeStatus]:
    """Put nodes into the order of a snapshot."""
    return sorted(nodes, key=lambda node: (node.node_id, node.worker_uuid))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Delta)


def _by_uuid(snapshot: Snapshot) -> dict[str, NodeStatus]:
    return {node.worker_uuid: node for node in snapshot.nodes}


def _bare(node: NodeStatus) -> NodeStatus:
    return msgspec.structs.replace(node, devices=[])


def _is_changed(before: NodeStatus | None, node: NodeStatus) -> bool:
    if before is None:
        return True
    aged = msgspec.structs.replace(before, heartbeat_age_s=node.heartbeat_age_s, devices=node.devices)
    return aged != node


def _changed(old: Mapping[str, V], new: Mapping[str, V]) -> dict[str, V]:
    return {name: value for name, value in new.items() if old.get(name) != value}


def _nodes(old: Snapshot, delta: Delta) -> list[NodeStatus]:
    nodes = {
        uuid: msgspec.structs.replace(node, heartbeat_age_s=delta.uptime_s - node.heard_at_s)
        for uuid, node in _by_uuid(old).items()
        if uuid not in set(delta.gone)
    }
    for node in delta.nodes:
        before = nodes.get(node.worker_uuid)
        nodes[node.worker_uuid] = msgspec.structs.replace(node, devices=before.devices if before is not None else [])
    for uuid, devices in delta.devices.items():
        if uuid in nodes:
            nodes[uuid] = msgspec.structs.replace(nodes[uuid], devices=devices)
    return by_name(nodes.values())


def _services(old: list[ServiceStatus], delta: Delta) -> list[ServiceStatus]:
    services = {one.service: one for one in old if one.service not in delta.services_gone}
    services.update((one.service, one) for one in delta.services)
    return sorted(services.values(), key=lambda one: one.service)


def _events(old: list[FleetEvent], new: list[FleetEvent]) -> list[FleetEvent]:
    events = {event.id: event for event in (*old, *new)}
    return sorted(events.values(), key=lambda event: event.id)[-MAX_EVENTS:]
