"""The broker's state as others see it: the answers to QUERY.

A snapshot of everything, the list of services, and the traces of single requests. What a question costs is bounded: a
snapshot is made at most ten times a second, however many ask.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter

import msgspec

from ..protocol import messages as m
from ..protocol import request_trace
from ..protocol import snapshot as s
from ..protocol.capabilities import NOTHING
from ..protocol.limits import MAX_FRAME_BYTES
from .availability import choices
from .bounds import QUERY_RATE
from .history import PHASES, request_id_of
from .nodes import Node, NodeState
from .requests import Request
from .services import Service
from .state import BrokerState

_FRESH_S = 0.1
"""A snapshot this young is sent again: many who ask at once cost no more than one."""
_HEALTH: dict[NodeState, s.NodeHealth] = {
    NodeState.ACTIVE: "active",
    NodeState.SUSPECT: "suspect",
    NodeState.DRAINING: "draining",
    NodeState.LOST: "lost",
    NodeState.EVICTED: "evicted",
}


class StatusView:
    """Answers questions; keeps each answer for a moment."""

    __slots__ = ("_answers", "_made_at", "_snapshot")

    def __init__(self) -> None:
        self._made_at = -_FRESH_S
        self._snapshot: s.Snapshot | None = None
        self._answers: dict[tuple[str, bool], m.Status] = {}
        """Those about that snapshot, by question and whether an admin asks."""

    def answer(self, state: BrokerState, query: m.Query, user: str, now: float) -> m.Status:
        """Answer `status` (everything), `services` (without nodes), `explain` (one request)."""
        if query.what == "explain":
            return _explain(state, query, user, now)
        if query.what not in ("status", "services"):
            return m.Status(query.qid, "unknown", 0, b"", {"text": "known: status, services, explain"})
        if self._snapshot is None or now - self._made_at >= _FRESH_S:
            self._made_at, self._snapshot = now, snapshot(state, now)
            self._answers.clear()
        key = query.what, state.is_admin(user)
        answer = self._answers.get(key)
        if answer is None:
            seen = self._snapshot if key[1] else s.for_everybody(self._snapshot)
            forms = [_brief(seen)] if query.what == "services" else [seen, s.without_details(seen)]
            answer = self._answers[key] = _fitting(*forms)
        return msgspec.structs.replace(answer, qid=query.qid)

    def defer(self, query: m.Query) -> m.Status:
        """Answer who asks too often: when to ask again. Whoever does not wait floods."""
        return m.Status(query.qid, s.LATER, s.SCHEMA_VERSION, b"", {"retry_after_ms": int(10_000 / QUERY_RATE)})


def _fitting(*forms: s.Snapshot) -> m.Status:
    """Tell the first form that a frame can carry."""
    for form in forms:
        body = s.encode(form)
        if len(body) <= MAX_FRAME_BYTES:
            return m.Status(0, s.SCHEMA, s.SCHEMA_VERSION, body)
    text = f"this fleet's status is over the {MAX_FRAME_BYTES} bytes of a frame; ask for 'services'"
    return m.Status(0, s.TOO_LARGE, s.SCHEMA_VERSION, b"", {"text": text})


def snapshot(state: BrokerState, now: float) -> s.Snapshot:
    """Describe everything."""
    nodes = sorted(state.nodes_by_uuid.values(), key=lambda node: (node.node_id, node.ready.worker_uuid))
    services = [service for _, service in sorted(state.services.items()) if service.spec is not None]
    listed = choices(state, now)
    return s.Snapshot(
        broker_id=state.broker_id,
        broker_epoch=state.broker_epoch,
        uptime_s=now - state.started_at,
        ready=not state.is_draining and any(service.healthy for service in services),
        draining=state.is_draining,
        clients=len(state.sessions),
        queued=sum(service.queue.count for service in services),
        running=sum(service.running for service in services),
        nodes=[_node(node, now) for node in nodes],
        services=[_service(service, is_listed=service in listed) for service in services],
        counters=dataclasses.asdict(state.counters),
        unix_s=state.unix_s + now - state.started_at if state.unix_s else 0.0,
        tallies=state.labelled.copy(),
        requests=[_request(request, now) for request in _oldest(state)],
        events=state.events.newest(),
    )


def _explain(state: BrokerState, query: m.Query, user: str, now: float) -> m.Status:
    name, whose = query.args.get("request"), None if state.is_admin(user) else user
    traces = state.history.find(state.users, name, whose, now) if isinstance(name, str) and name else []
    body = request_trace.encode(traces)
    if len(body) > MAX_FRAME_BYTES:
        body = request_trace.encode(traces[:1])
    return m.Status(query.qid, request_trace.SCHEMA, request_trace.SCHEMA_VERSION, body)


def _brief(whole: s.Snapshot) -> s.Snapshot:
    listed = [service for service in whole.services if service.is_listed]
    return msgspec.structs.replace(whole, services=listed, nodes=[], requests=[], events=[])


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
        devices=node.describe_devices(),
        capabilities=_capabilities(node),
    )


def _capabilities(node: Node) -> list[str]:
    """List what a node can do; one that has not been ready does not know yet."""
    return sorted(NOTHING.union(*(offer.supply.can for offer in node.offers.values()))) if node.was_ready else []


def _service(service: Service[Request], *, is_listed: bool) -> s.ServiceStatus:
    spec = service.spec
    assert spec is not None
    able = [(node, offer) for node, offer in service.offers.items() if node.is_usable]
    return s.ServiceStatus(
        service=service.name,
        task=spec.task,
        model=spec.model,
        revision=spec.revision,
        context=spec.context,
        nodes=len(able),
        capacity=sum(min(node.capacity, offer.max_inflight) for node, offer in able),
        queued=service.queue.count,
        running=service.running,
        prompt_tokens=service.prompt_tokens,
        generated_tokens=service.generated_tokens,
        finished={reason: count for reason, count in service.finished.items() if count},
        queue_time=service.queue_time.read(),
        first_token=service.first_token.read(),
        token_time=service.token_time.read(),
        duration=service.duration.read(),
        is_listed=is_listed,
        capabilities=_able_nodes(service),
        wait_s=service.whole_wait_s(),
    )


def _able_nodes(service: Service[Request]) -> dict[str, int]:
    """Count the healthy nodes of a service by what they can do."""
    counts: Counter[str] = Counter()
    for supply, nodes in service.supplies.items():
        counts.update(dict.fromkeys(supply.can, nodes))
    return dict(sorted(counts.items()))


def _oldest(state: BrokerState) -> list[Request]:
    """Find the requests that live longest; those of each user stand in the order they came."""
    firsts = (itertools.islice(user.requests.values(), s.MAX_REQUESTS) for user in state.users.values())
    every = itertools.chain.from_iterable(firsts)
    return heapq.nsmallest(s.MAX_REQUESTS, every, key=lambda request: request.admitted_at)


def _request(request: Request, now: float) -> s.RequestStatus:
    node = request.node.node_id if request.node is not None else ""
    return s.RequestStatus(
        rid=request.ask.rid.hex(),
        request_id=request_id_of(request.ask.rid, request.ask.ext),
        service=request.ask.service,
        phase=PHASES[request.state],
        age_s=now - request.admitted_at,
        node=node,
        units=request.next_n,
        losses=len(request.trace.lost) if request.trace is not None else 0,
    )
