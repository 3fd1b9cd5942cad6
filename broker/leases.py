"""Leases: given with a DISPATCH, taken back, and fenced so that nothing late does harm.

Plain functions over the tables; who gets a lease, and what follows when one is lost, is decided elsewhere.
"""

from __future__ import annotations

from ..protocol import messages as m
from .nodes import Node, NodeState, Offer
from .placement import reindex, reindex_after_dispatch
from .requests import DISPATCHED, TRANSITIONS, Request
from .state import WORKERS, BrokerState

_NOT_RESUME = ~m.RESUME
_FIRST_DOUBT = 0.25
"""Share of its time after which a request is asked for whose node has not said a word."""
_MOST_FENCED = 4096
"""Cancelled leases remembered per node; beyond it a late result may be answered by a second CANCEL."""


def grant(state: BrokerState, request: Request, offer: Offer, now: float) -> None:
    """Give a request to a node under a fresh lease."""
    node = offer.node
    lease = state.ids()
    request.state = TRANSITIONS[request.state][DISPATCHED]
    request.offer = offer
    request.lease = lease
    request.move_on(request.service.moved_at if request.dispatched_at else now)  # the first one ends its waiting
    request.dispatched_at = now
    request.from_unit = request.next_n
    request.attempts += 1
    request.doubt_at = now + (request.deadline - now) * _FIRST_DOUBT
    state.request_timers.set(request, min(request.doubt_at, request.ends_at))
    node.running[lease] = request
    node.dispatched += 1
    offer.running += 1
    request.service.running += 1
    state.counters.dispatches += 1
    state.out.append((WORKERS, node.peer, _dispatch(state, request, lease, now)))
    reindex_after_dispatch(node)


def release(request: Request) -> Node:
    """Take the lease of a request back; the caller settles the node. Return the node that had it."""
    offer = request.offer
    assert offer is not None
    node = offer.node
    del node.running[request.lease]
    request.last_node = node
    offer.running -= 1
    request.service.running -= 1
    request.offer = None
    request.lease = 0
    return node


def fence(state: BrokerState, node: Node, lease: int, reason: str) -> None:
    """Tell a node, once, that a lease is void. One whose connection is gone learns it when it comes back."""
    if lease in node.fenced or node.state in (NodeState.LOST, NodeState.REMOVED):
        return
    node.fenced[lease] = None
    if len(node.fenced) > _MOST_FENCED:
        del node.fenced[next(iter(node.fenced))]
    state.tell_worker(node, m.WorkerCancel(lease, reason))


def reindex_and_wake(state: BrokerState, node: Node) -> None:
    """Put a node where its load says, and note the services that may now dispatch to it."""
    reindex(node)
    for offer in node.offers.values():
        if offer.index >= 0:
            queue = offer.service.queue
            if queue.parked:
                queue.unpark(offer.spec.revision)
            if queue.count:
                state.dirty[offer.service] = None


def _dispatch(state: BrokerState, request: Request, lease: int, now: float) -> m.Dispatch:
    ask = request.ask
    flags, resume_n, blob = ask.flags & _NOT_RESUME, request.next_n, b""
    if resume_n and request.journal is not None:
        blob = request.journal.blob()
        flags |= m.RESUME
        state.counters.resumes += 1
    left_s = min(request.ttl_s, request.ends_at - now) if request.is_patient else request.deadline - now
    ttl_ms = int(left_s * 1000)
    ttl_ms = ttl_ms if ttl_ms > 0 else 1  # its timer is a few milliseconds late at most
    user = request.user.name
    return m.Dispatch(
        lease, ask.service, ttl_ms, flags, request.attempts, resume_n, ask.rid, user, ask.body, blob, request.ext
    )
