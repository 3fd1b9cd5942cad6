"""What must be true of the tables between any two events. Slow and complete; only tests need it."""

from __future__ import annotations

from zmqrt.broker.nodes import Node, NodeState
from zmqrt.broker.requests import Request, RequestState, Subscriber
from zmqrt.broker.state import BrokerState
from zmqrt.protocol.limits import MAX_FLEET_PARTS


def check(state: BrokerState) -> None:
    """Raise AssertionError at the first contradiction."""
    requests = [request for user in state.users.values() for request in user.requests.values()]
    _check_requests(state, requests)
    _check_nodes(state, requests)
    _check_services(state, requests)
    _check_sessions(state, requests)
    _check_bytes(state, requests)
    assert not state.dirty, "something could be dispatched and was not"
    assert not state.touched, "something has changed and was not indexed anew"


def _check_requests(state: BrokerState, requests: list[Request]) -> None:
    for request in requests:
        assert request.user.requests[request.ask.rid] is request
        assert request.state is not RequestState.ENDED
        assert (request.state is RequestState.QUEUED) == (request.offer is None) == request.is_waiting
        assert request in state.request_timers, "a live request without a timer"
        assert request.subscribers, "a live request that nobody reads"
        assert len(request.subscribers) <= state.bounds.subscribers
        assert request.attempts <= state.bounds.attempts
        if request.offer is not None:
            assert request.node is request.offer.node
            assert request.lease in request.offer.node.running
            assert state.leases[request.lease] is request
        if request.journal is not None:
            assert request.journal.next_n == request.next_n


def _check_nodes(state: BrokerState, requests: list[Request]) -> None:
    leases: set[int] = set()
    for node in state.nodes_by_uuid.values():
        assert node.state is not NodeState.REMOVED
        assert (state.nodes.get(node.peer) is node) == (node.state is not NodeState.LOST)
        assert node in state.node_timers
        assert len(node.running) <= node.ready.capacity
        assert node.dispatched <= max(node.limit, node.announced_limit)
        if node.state is NodeState.EVICTED:
            assert not node.running
        for lease in node.running:
            request = state.leases[lease]
            assert request.lease == lease
            assert lease not in leases, "a lease held twice"
            leases.add(lease)
        _check_offers(state, node)
    assert all(state.nodes_by_uuid[node.ready.worker_uuid] is node for node in state.nodes.values())
    assert leases == set(state.leases)
    assert len(leases) == sum(request.offer is not None for request in requests)


def _check_offers(state: BrokerState, node: Node) -> None:
    running = sum(offer.running for offer in node.offers.values())
    assert running <= len(node.running)  # a withdrawn offer may still have some
    for name, offer in node.offers.items():
        service = state.services[name]
        assert offer.running == sum(state.leases[lease].offer is offer for lease in node.running)
        most = min(node.most, node.ready.capacity)
        can_take = node.is_usable and node.dispatched < node.limit and len(node.running) < most
        assert (offer in service.load_index) == (can_take and offer.running < offer.max_inflight)
        assert service.offers[node] is offer


def _check_services(state: BrokerState, requests: list[Request]) -> None:
    for service in state.services.values():
        mine = [request for request in requests if request.service is service]
        waiting = [request for request in mine if request.state is RequestState.QUEUED]
        assert service.queue.count == len(waiting)
        assert service.queue.size_bytes == sum(len(request.ask.body) for request in waiting)
        assert sorted(map(id, service.queue.waiting())) == sorted(map(id, waiting))
        assert service.running == len(mine) - len(waiting)
        assert service.prefixes.offers() <= set(map(id, service.offers.values())), "a prefix at a node that is gone"
        able = [node for node in service.offers if node.is_usable]
        assert service.healthy == len(able)
        assert sum(service.supplies.values()) == service.healthy
        parked = [request for request in waiting if request.is_parked]
        assert service.queue.due == len(waiting) - len(parked) + len(service.queue.awake)
        assert service.queue.awake.keys() <= service.queue.parked.keys()
        if service.load_index.mask:
            assert not service.queue.due, "a node is free and requests wait"
            assert not any(service.load_index.meets(request.demand) for request in parked), "and one that they wait for"
        assert (service in state.departed) <= (not service.offers)
        assert (service in state.awaited) == (service.spec is None)
        assert service.offers or service in state.service_timers, "a service that stays for ever"
    assert all(state.services[request.service.name] is request.service for request in requests)
    assert set(state.departed) | set(state.awaited) <= set(state.services.values())
    nodes = state.nodes_by_uuid.values()
    assert state.parts == sum(1 + node.device_parts + len(node.offers) for node in nodes) <= MAX_FLEET_PARTS


def _check_sessions(state: BrokerState, requests: list[Request]) -> None:
    subscribers = [subscriber for request in requests for subscriber in request.subscribers]
    for subscriber in subscribers:
        assert subscriber.session.subscribers[subscriber.rid] is subscriber
        assert subscriber.request is not None
    for session in state.sessions.values():
        assert session.is_open
        assert session.send_until == session.consumed_bytes + session.window_bytes
        assert session in state.session_timers
        assert len(session.subscribers) <= state.bounds.outstanding
        assert (session.shut_at is not None) == bool(session.lagging)
        assert session.consumed_bytes <= session.sent_bytes
        for subscriber in session.subscribers.values():
            _check_subscriber(subscriber)
    assert len(state.sessions) <= state.bounds.sessions


def _check_subscriber(subscriber: Subscriber) -> None:
    assert subscriber.is_lagging == (subscriber in subscriber.session.lagging)
    if subscriber.request is None:
        assert subscriber.is_lagging, "a subscriber without a request that waits for nothing"
        assert subscriber.ending is not None
    else:
        assert subscriber in subscriber.request.subscribers


def _check_bytes(state: BrokerState, requests: list[Request]) -> None:
    subscribers = [subscriber for session in state.sessions.values() for subscriber in session.subscribers.values()]
    held = sum(request.held_bytes for request in requests) + sum(subscriber.held_bytes for subscriber in subscribers)
    assert state.memory.held_bytes == held
    assert state.result_cache.size_bytes == sum(result.held_bytes for result in state.result_cache)
    assert state.result_cache.size_bytes <= state.bounds.result_cache_bytes
