"""What several brokers tell, put together: a node that serves two of them is one node. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from ...protocol.histogram import total
from ...protocol.snapshot import FleetEvent, NodeStatus, RequestStatus, ServiceStatus, Snapshot

NOT_ASKED: Final = "not asked yet"
"""The problem of a broker that nobody knows anything of, which is none yet."""
_LIVELIEST: Final = ("evicted", "lost", "suspect", "draining", "active")


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One broker as it was last seen; without a snapshot, why there is none, and whether it said that it leaves."""

    endpoint: str
    snapshot: Snapshot | None = None
    problem: str = ""
    is_leaving: bool = False

    @property
    def name(self) -> str:
        """What to call it: its own name once it has told it."""
        return self.snapshot.broker_id if self.snapshot is not None else self.endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Something that one broker told, and which one; times are seconds before now."""

    broker: str
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Told):
    """An event of a broker's diary."""

    event: FleetEvent
    ago_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Running(Told):
    """A live request."""

    request: RequestStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All brokers of a fleet at one moment."""

    sights: list[Sight]
    nodes: list[NodeStatus]
    services: list[ServiceStatus]
    requests: list[Running]
    events: list[Event]
    counters: Counter[str]

    @property
    def queued(self) -> int:
        """Requests that wait at brokers."""
        return sum(one.queued for one in snapshots(self.sights))

    @property
    def running(self) -> int:
        """Requests at nodes."""
        return sum(one.running for one in snapshots(self.sights))

    @property
    def capacity(self) -> int:
        """Requests that the nodes that serve now take at once."""
        return sum(node.capacity for node in self.nodes if is_serving(node))


def snapshots(sights: Iterable[Sight]) -> list[Snapshot]:
    """Return what the brokers told that can be reached."""
    return [one.snapshot for one in sights if one.snapshot is not None]


def is_serving(node: NodeStatus) -> bool:
    """Say whether a node takes new requests, as far as it has room."""
    return node.health == "active" and node.phase == "ready"


def merge(sights: Sequence[Sight], of_brokers: Sequence[Event] = ()) -> Fleet:
    """Put together what is known now, and what happened to brokers. One that is named twice counts once."""
    epochs: set[int] = set()
    sights = [one for one in sights if one.snapshot is None or not _is_among(one.snapshot.broker_epoch, epochs)]
    seen = snapshots(sights)
    nodes = _nodes(seen)
    counters: Counter[str] = Counter()
    for one in seen:
        counters.update(one.counters)
        counters["failures"] += sum(one.tallies.get("failures", {}).values())
    return Fleet(
        sights=list(sights),
        nodes=nodes,
        services=_services(seen, nodes),
        requests=_requests(sights),
        events=sorted([*_events(sights), *of_brokers], key=lambda one: one.ago_s),
        counters=counters,
    )


def _nodes(seen: Iterable[Snapshot]) -> list[NodeStatus]:
    """Let the broker speak that knows a node best; what each gave it adds up."""
    nodes: dict[str, NodeStatus] = {}
    for node in (node for one in seen for node in one.nodes):
        other = nodes.get(node.worker_uuid)
        nodes[node.worker_uuid] = node if other is None else _both(node, other)
    return sorted(nodes.values(), key=lambda node: (node.node_id, node.worker_uuid))


def _both(one: NodeStatus, other: NodeStatus) -> NodeStatus:
    best = max(one, other, key=lambda node: (_LIVELIEST.index(node.health), node.elapsed_s))
    in_flight = one.in_flight + other.in_flight
    return msgspec.structs.replace(
        best,
        in_flight=in_flight,
        load=in_flight / (best.capacity or 1),
        completed=one.completed + other.completed,
        failed=one.failed + other.failed,
    )


def _services(seen: Iterable[Snapshot], nodes: Sequence[NodeStatus]) -> list[ServiceStatus]:
    """Add up what each broker counted; how many nodes serve a model, the nodes tell."""
    told: dict[str, list[ServiceStatus]] = {}
    for service in (service for one in seen for service in one.services):
        told.setdefault(service.service, []).append(service)
    return [parts[0] if len(parts) == 1 else _whole(parts, nodes) for _, parts in sorted(told.items())]


def _whole(parts: list[ServiceStatus], nodes: Sequence[NodeStatus]) -> ServiceStatus:
    able = [node for node in nodes if is_serving(node) and parts[0].service in node.services]
    return msgspec.structs.replace(
        parts[0],
        is_listed=any(one.is_listed for one in parts),
        nodes=len(able),
        capacity=sum(node.capacity for node in able),
        queued=sum(one.queued for one in parts),
        running=sum(one.running for one in parts),
        prompt_tokens=sum(one.prompt_tokens for one in parts),
        generated_tokens=sum(one.generated_tokens for one in parts),
        queue_time=total(one.queue_time for one in parts),
        first_token=total(one.first_token for one in parts),
        token_time=total(one.token_time for one in parts),
        duration=total(one.duration for one in parts),
    )


def _is_among(epoch: int, epochs: set[int]) -> bool:
    """Say whether it was there already; now it is."""
    is_there = epoch in epochs
    epochs.add(epoch)
    return is_there


def _requests(sights: Iterable[Sight]) -> list[Running]:
    found = [
        Running(broker=one.name, endpoint=one.endpoint, request=request)
        for one in sights
        if one.snapshot is not None
        for request in one.snapshot.requests
    ]
    return sorted(found, key=lambda one: -one.request.age_s)


def _events(sights: Iterable[Sight]) -> list[Event]:
    return [
        Event(broker=one.name, endpoint=one.endpoint, event=event, ago_s=one.snapshot.uptime_s - event.at_s)
        for one in sights
        if one.snapshot is not None
        for event in one.snapshot.events
    ]
