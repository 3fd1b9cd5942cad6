"""What must be true of the tables between any two events. Slow and complete; only tests call it."""

from __future__ import annotations

from ..protocol.limits import MAX_FLEET_PARTS
from .state import House
from .requests import Reader, Request, RequestState
from .nodes import Node, NodeState


def check(house: House) -> None:
    """Raise AssertionError at the first contradiction."""
    requests = [request for user in house.users.values() for request in user.requests.values()]
    _check_requests(house, requests)
    _check_nodes(house, requests)
    _check_services(house, requests)
    _check_sessions(house, requests)
    _check_bytes(house, requests)
    assert not house.dirty, "something could be dispatched and was not"


def _check_requests(house: House, requests: list[Request]) -> None:
    for request in requests:
        assert request.user.requests[request.ask.rid] is request
        assert request.state is not RequestState.ENDED
        assert (request.state is RequestState.QUEUED) == (request.offer is None)
        assert request in house.request_timers, "a live request without a timer"
        assert request.readers, "a live request that nobody reads"
        assert len(request.readers) <= house.bounds.readers
        assert request.attempts <= house.bounds.attempts
        if request.offer is not None:
            assert request.offer.node.running[request.lease] is request
        if request.journal is not None:
            assert request.journal.next_n == request.next_n


def _check_nodes(house: House, requests: list[Request]) -> None:
    leases: set[int] = set()
    for node in house.nodes_by_uuid.values():
        assert node.state is not NodeState.REMOVED
        assert (house.nodes.get(node.peer) is node) == (node.state is not NodeState.LOST)
        assert node in house.node_timers
        assert len(node.running) <= node.ready.capacity
        assert node.dispatched <= max(node.limit, node.told_limit)
        if node.state is NodeState.EVICTED:
            assert not node.running
        for lease, request in node.running.items():
            assert request.lease == lease
            assert lease not in leases, "a lease held twice"
            leases.add(lease)
        _check_offers(node)
    assert all(house.nodes_by_uuid[node.ready.worker_uuid] is node for node in house.nodes.values())
    assert len(leases) == sum(request.offer is not None for request in requests)


def _check_offers(node: Node) -> None:
    running = sum(offer.running for offer in node.offers.values())
    assert running <= len(node.running)  # a withdrawn offer may still have some
    for offer in node.offers.values():
        assert offer.running == sum(request.offer is offer for request in node.running.values())
        most = min(node.most, node.ready.capacity)
        can_take = node.is_usable and node.dispatched < node.limit and len(node.running) < most
        assert (offer in offer.service.ring) == (can_take and offer.running < offer.max_inflight)
        assert offer.service.offers[node] is offer


def _check_services(house: House, requests: list[Request]) -> None:
    for service in house.services.values():
        mine = [request for request in requests if request.service is service]
        waiting = [request for request in mine if request.state is RequestState.QUEUED]
        assert service.queue.count == len(waiting)
        assert service.queue.size_bytes == sum(len(request.ask.body) for request in waiting)
        assert sorted(map(id, service.queue.waiting())) == sorted(map(id, waiting))
        assert service.running == len(mine) - len(waiting)
        assert service.prefixes.offers() <= set(map(id, service.offers.values())), "a prefix at a node that is gone"
        able = [node for node in service.offers if node.is_usable]
        assert service.healthy == len(able)
        assert sum(service.revisions.values()) == service.healthy
        if service.ring.mask:
            stranded = sum(map(len, service.queue.stranded.values()))
            assert service.queue.count <= stranded, "a node is free and requests wait"
        assert (service in house.departed) <= (not service.offers)
        assert (service in house.awaited) == (service.told is None)
        assert service.offers or service in house.service_timers, "a service that stays for ever"
    assert all(house.services[request.service.name] is request.service for request in requests)
    assert set(house.departed) | set(house.awaited) <= set(house.services.values())
    nodes = house.nodes_by_uuid.values()
    assert house.parts == sum(1 + node.device_parts + len(node.offers) for node in nodes) <= MAX_FLEET_PARTS


def _check_sessions(house: House, requests: list[Request]) -> None:
    readers = [reader for request in requests for reader in request.readers]
    for reader in readers:
        assert reader.session.readers[reader.rid] is reader
        assert reader.request is not None
    for session in house.sessions.values():
        assert session.is_open
        assert session.send_until == session.consumed_bytes + session.window_bytes
        assert session in house.session_timers
        assert len(session.readers) <= house.bounds.outstanding
        assert (session.shut_at is not None) == bool(session.lagging)
        assert session.consumed_bytes <= session.sent_bytes
        for reader in session.readers.values():
            _check_reader(reader)
    assert len(house.sessions) <= house.bounds.sessions


def _check_reader(reader: Reader) -> None:
    assert reader.is_lagging == (reader in reader.session.lagging)
    if reader.request is None:
        assert reader.is_lagging, "a reader without a request that waits for nothing"
        assert reader.ending is not None
    else:
        assert reader in reader.request.readers


def _check_bytes(house: House, requests: list[Request]) -> None:
    readers = [reader for session in house.sessions.values() for reader in session.readers.values()]
    held = sum(request.held_bytes for request in requests) + sum(reader.held_bytes for reader in readers)
    assert house.held_bytes == held
    assert house.outcomes.size_bytes == sum(outcome.held_bytes for outcome in house.outcomes)
    assert house.outcomes.size_bytes <= house.bounds.outcome_bytes
