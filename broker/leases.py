"""Leases: given with a DISPATCH, taken back, and fenced so that nothing late does harm.

Rule 1: a result counts only under a lease in `state.leases`, and only from the node that holds it. Whoever ends an
attempt takes the lease out first, so what the node says later finds nothing: there is no race to reason about.

Rule 2: a lease that was taken from a living node is cancelled there, once. That saves the node's time; rule 1 alone
would do for the answer.

Rule 3: whatever changes what a node may be given puts it into `state.touched`, and nothing more. Its offers are indexed
anew before the next choice of a node, once for all the changes of an envelope. Only a dispatch does it at once, because
the next request of the same envelope has to see it.

Who gets a lease, and what follows when one is lost, is decided elsewhere.
"""

from __future__ import annotations

from typing import Final

from ..protocol import messages as m
from .nodes import Node, NodeState, Offer
from .placement import load_level
from .requests import Request
from .state import WORKERS, BrokerState

_NOT_RESUME: Final = ~m.RESUME
_MOST_FENCED: Final = 4096
"""Cancelled leases remembered per node; beyond it a late result may be answered by a second CANCEL."""


def grant(state: BrokerState, request: Request, offer: Offer, now: float) -> None:
    """Give a request to a node under a fresh lease."""
    node, lease = offer.node, state.new_id()
    request.start_attempt(offer, lease, now)
    state.request_timers.set(request, min(request.doubt_at, request.ends_at))
    state.leases[lease] = request
    node.take(lease)
    offer.running += 1
    request.service.running += 1
    state.counters.dispatches += 1
    state.out.append((WORKERS, node.peer, _dispatch(state, request, lease, now)))
    # Behind the others of its set, also if that is the same one: the next equal request goes elsewhere.
    level, services = load_level(node), state.services
    for name, other in node.offers.items():
        services[name].load_index.put(other, level if other.running < other.max_inflight else -1)


def release(state: BrokerState, request: Request) -> Node:
    """Take the lease of a request back. Return the node that had it."""
    offer = request.offer
    assert offer is not None
    node = offer.node
    del state.leases[request.lease]
    del node.running[request.lease]
    offer.running -= 1
    request.service.running -= 1
    request.end_lease()
    state.touched[node] = None
    return node


def fence(state: BrokerState, node: Node, lease: int, reason: str) -> None:
    """Tell a node, once, that a lease is void. One whose connection is gone learns it when it comes back."""
    if lease in node.fenced or node.state in (NodeState.LOST, NodeState.REMOVED):
        return
    node.fenced[lease] = None
    if len(node.fenced) > _MOST_FENCED:
        del node.fenced[next(iter(node.fenced))]
    state.tell_worker(node, m.WorkerCancel(lease, reason))


def reindex(state: BrokerState) -> None:
    """Put the nodes that have changed where their load says, and note the services that may now dispatch to them."""
    services = state.services
    for node in state.touched:
        level = load_level(node)
        for name, offer in node.offers.items():
            wanted = level if offer.running < offer.max_inflight else -1
            service = services[name]
            if wanted != offer.level:
                service.load_index.put(offer, wanted)
            if wanted >= 0:
                queue = service.queue
                if queue.parked:
                    queue.awaken(offer.supply)
                if queue.due:
                    state.dirty[service] = None
    state.touched.clear()


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
