"""Merges what several brokers report into one fleet: a node that serves two of them is one node. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from ...protocol.histogram import total
from ...protocol.snapshot import FleetEvent, NodeStatus, RequestStatus, ServiceStatus, Snapshot

_LIVELIEST: Final = ("evicted", "lost", "suspect", "draining", "active")


class BrokerView(msgspec.Struct, frozen=True, kw_only=True):
    """One broker as it was last seen.

    Without a snapshot `problem` says why there is none; it is empty before the first answer, which is no outage.
    """

    endpoint: str
    snapshot: Snapshot | None = None
    problem: str = ""
    is_leaving: bool = False

    @property
    def name(self) -> str:
        """What to call it: its own name once it is known."""
        return self.snapshot.broker_id if self.snapshot is not None else self.endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Sourced:
    """Something that one broker reported, and which broker it was."""

    broker: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcedEvent(Sourced):
    """An event, and how many seconds ago it was."""

    event: FleetEvent
    ago_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcedRequest(Sourced):
    """A live request."""

    request: RequestStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedFleet:
    """All brokers of a fleet at one moment."""

    views: list[BrokerView]
    nodes: list[NodeStatus]
    services: list[ServiceStatus]
    requests: list[SourcedRequest]
    events: list[SourcedEvent]
    counters: Counter[str]

    @property
    def queued(self) -> int:
        """Requests that wait at brokers."""
        return sum(snapshot.queued for snapshot in snapshots(self.views))

    @property
    def running(self) -> int:
        """Requests at nodes."""
        return sum(snapshot.running for snapshot in snapshots(self.views))

    @property
    def capacity(self) -> int:
        """Requests that the nodes that serve now take at once."""
        return sum(node.capacity for node in self.nodes if is_serving(node))


def snapshots(views: Iterable[BrokerView]) -> list[Snapshot]:
    """Return the snapshots of the brokers that can be reached."""
    return [view.snapshot for view in views if view.snapshot is not None]


def is_serving(node: NodeStatus) -> bool:
    """Say whether a node takes new requests, as far as it has room."""
    return node.health == "active" and node.phase == "ready"


def merge(views: Sequence[BrokerView], of_brokers: Sequence[SourcedEvent] = ()) -> MergedFleet:
    """Merge the views of brokers, and the events about them. A broker that is named twice counts once."""
    views = _without_twins(views)
    seen = snapshots(views)
    nodes = _nodes(seen)
    counters: Counter[str] = Counter()
    for snapshot in seen:
        counters.update(snapshot.counters)
        counters["failures"] += sum(snapshot.tallies.get("failures", {}).values())
    return MergedFleet(
        views=views,
        nodes=nodes,
        services=_services(seen, nodes),
        requests=_requests(views),
        events=sorted([*_events(views), *of_brokers], key=lambda event: event.ago_s),
        counters=counters,
    )


def _nodes(seen: Iterable[Snapshot]) -> list[NodeStatus]:
    """Take each node from the broker that knows it best, and add up what all of them gave it."""
    nodes: dict[str, NodeStatus] = {}
    for node in (node for snapshot in seen for node in snapshot.nodes):
        other = nodes.get(node.worker_uuid)
        nodes[node.worker_uuid] = node if other is None else _merge_nodes(node, other)
    return sorted(nodes.values(), key=lambda node: (node.node_id, node.worker_uuid))


def _merge_nodes(node: NodeStatus, other: NodeStatus) -> NodeStatus:
    best = max(node, other, key=lambda seen: (_LIVELIEST.index(seen.health), seen.elapsed_s))
    in_flight = node.in_flight + other.in_flight
    return msgspec.structs.replace(
        best,
        in_flight=in_flight,
        load=in_flight / (best.capacity or 1),
        completed=node.completed + other.completed,
        failed=node.failed + other.failed,
    )


def _services(seen: Iterable[Snapshot], nodes: Sequence[NodeStatus]) -> list[ServiceStatus]:
    """Add up what each broker counted; the nodes say how many of them serve a model."""
    parts_of: dict[str, list[ServiceStatus]] = {}
    for service in (service for snapshot in seen for service in snapshot.services):
        parts_of.setdefault(service.service, []).append(service)
    return [parts[0] if len(parts) == 1 else _merge_services(parts, nodes) for _, parts in sorted(parts_of.items())]


def _merge_services(parts: list[ServiceStatus], nodes: Sequence[NodeStatus]) -> ServiceStatus:
    able = [node for node in nodes if is_serving(node) and parts[0].service in node.services]
    names = {name for part in parts for name in part.capabilities}
    return msgspec.structs.replace(
        parts[0],
        is_listed=any(part.is_listed for part in parts),
        nodes=len(able),
        capacity=sum(node.capacity for node in able),
        queued=sum(part.queued for part in parts),
        running=sum(part.running for part in parts),
        prompt_tokens=sum(part.prompt_tokens for part in parts),
        generated_tokens=sum(part.generated_tokens for part in parts),
        queue_time=total(part.queue_time for part in parts),
        first_token=total(part.first_token for part in parts),
        token_time=total(part.token_time for part in parts),
        duration=total(part.duration for part in parts),
        capabilities={name: max(part.capabilities.get(name, 0) for part in parts) for name in sorted(names)},
        wait_s=max((part.wait_s for part in parts if part.wait_s is not None), default=None),
    )


def _without_twins(views: Iterable[BrokerView]) -> list[BrokerView]:
    """Leave out a broker that stands here already, by another endpoint."""
    kept: list[BrokerView] = []
    epochs: set[int] = set()
    for view in views:
        if view.snapshot is None or view.snapshot.broker_epoch not in epochs:
            kept.append(view)
        if view.snapshot is not None:
            epochs.add(view.snapshot.broker_epoch)
    return kept


def _requests(views: Iterable[BrokerView]) -> list[SourcedRequest]:
    found = [
        SourcedRequest(broker=view.name, endpoint=view.endpoint, request=request)
        for view in views
        if view.snapshot is not None
        for request in view.snapshot.requests
    ]
    return sorted(found, key=lambda running: -running.request.age_s)


def _events(views: Iterable[BrokerView]) -> list[SourcedEvent]:
    return [
        SourcedEvent(broker=view.name, endpoint=view.endpoint, event=event, ago_s=view.snapshot.uptime_s - event.at_s)
        for view in views
        if view.snapshot is not None
        for event in view.snapshot.events
    ]
