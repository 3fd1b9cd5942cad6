"""From the queue to a node, and back when the node is lost: what waits, what goes again, and what must not.

A request may go again if running it twice is harmless (IDEMPOTENT), if nobody has seen units that another node could
not continue, and if it has attempts, time and luck left. Otherwise it ends here, and the error says what was delivered.

Three things are counted against a request, because they mean different things. *Attempts* are dispatches since the last
new unit: whoever makes progress is never given up for its history. *Crashes* are engines or nodes that died before they
had made a unit of it: after a few in a row it is the request that kills them (POISON), and it must not take the whole
fleet down. *Doubt* is about the node: one that was given a request and has said nothing at all, while others answer
such requests in a fraction of the time, loses it once. A second move would only prove that the request is slow.
"""

from __future__ import annotations

from typing import Final

from ..protocol import messages as m
from ..protocol.capabilities import NOTHING
from ..protocol.errors import ErrorKind
from .availability import in_words, why_absent, why_unable
from .completion import fail
from .counters import LossReason
from .delivery import send_progress
from .history import attempt_of
from .leases import fence, grant, reindex, release
from .nodes import Demand, Node
from .requests import LEASED, LOOKS, QUEUED, Request
from .services import Service
from .state import BrokerState, milliseconds

_LEAST_DOUBT_S: Final = 0.05
"""Timers are that exact, and no request is looked at more often."""
_SURE: Final = 4
"""A first sign that takes so many times as long as usual is not just late."""

# --- to a node -------------------------------------------------------------------------------------------------------


def pump(state: BrokerState, now: float) -> None:
    """Index anew what has changed, and dispatch what can be dispatched; the last thing that every event does."""
    if state.touched:
        reindex(state)
    dirty = state.dirty
    while dirty:
        service, _ = dirty.popitem()
        queue, load_index = service.queue, service.load_index
        while load_index.mask:
            request = queue.pop(load_index.meets)
            if request is None:
                break
            if request.last_node is None and request.revision is None:
                offer = service.place(request.ext, request.needs)
            else:
                offer = load_index.best_for(request.last_node, request.demand)
            if offer is None:
                _park(state, request, now)
            else:
                grant(state, request, offer, now)
                if request.forecast is not None:
                    _learn_wait(request, now)


def _learn_wait(request: Request, now: float) -> None:
    """Compare what was expected of a wait with what it was."""
    if request.forecast is not None:
        request.service.predictor.learn_wait(request.forecast, request.priority, now - request.admitted_at)
        request.expect(None)


def _park(state: BrokerState, request: Request, now: float) -> None:
    """Set aside what none of the free nodes may take: the weights that began it, or something it needs, are elsewhere.

    If they are nowhere, one that has never run is refused, as if it came now; the others wait only so long.
    """
    service = request.service
    has_begun = request.last_node is not None or request.revision is not None
    if not service.has(request.demand):
        if request.revision is not None and not request.is_stream:
            _begin_anew(state, request)
            service.queue.push_front(request)
            return
        refusal = None if has_begun else why_unable(state, service, request.needs, now)
        if refusal is not None:
            kind, text, retry_after_s = refusal
            fail(state, request, kind, text, now, retry_after_s=retry_after_s)
            return
    service.queue.park(request, has_begun=has_begun)
    request.hopeless_at = now + state.timing.eviction_s
    _watch(state, request, now)


# --- back from a node ------------------------------------------------------------------------------------------------


def take_back(state: BrokerState, request: Request) -> None:
    """Take back a request that never left this process, or that the node had no slot for: no attempt counts."""
    release(state, request)
    request.lose_attempt(None)
    request.note_queued(request.service.queue.count, "its node had no slot left")
    _requeue(state, request)


def lose(state: BrokerState, request: Request, now: float, why: str, reason: LossReason, *, crashes: int = 0) -> bool:
    """End an attempt without a result: another one begins, or the request ends (False).

    Args:
        why: In words, for whoever asked and for whoever has it explained.
        reason: The same as a label of a counter.
        crashes: How many engines or nodes died of it.
    """
    why = why or reason.value
    node = release(state, request)
    request.lose_attempt(attempt_of(request, node.node_id, now, why), crashes)
    refusal = _why_not_again(state, request, now)
    if refusal is not None:
        kind, text = refusal
        fail(state, request, kind, f"{why}; {text}", now)
        return False
    state.counters.redispatches += 1
    state.labelled.redispatches[reason.value] += 1
    _requeue(state, request)
    return True


def _why_not_again(state: BrokerState, request: Request, now: float) -> tuple[ErrorKind, str] | None:
    bounds = state.bounds
    if not request.is_idempotent:
        return ErrorKind.OUTCOME_UNKNOWN, "it is not idempotent, so it is not run a second time"
    if request.is_stream and request.next_n:
        if not request.is_resumable:
            return ErrorKind.NOT_RESUMABLE, f"{request.next_n} units were delivered, and it cannot be resumed"
        if request.journal is None or not request.journal.is_whole:
            return ErrorKind.WORKER_LOST, "the units delivered are too many to be kept here; resume with your own copy"
    if request.crashes >= bounds.crashes:
        return ErrorKind.POISON, f"{request.crashes} engines or nodes in a row died of it"
    if request.attempts >= bounds.attempts:
        return ErrorKind.WORKER_LOST, f"all {bounds.attempts} attempts are used up"
    if now >= request.due_at:
        return ErrorKind.DEADLINE, "and its time is up"
    return None


def _requeue(state: BrokerState, request: Request) -> None:
    if not request.is_stream and (request.journal is None or not request.is_resumable):
        _begin_anew(state, request)
    request.service.queue.push_front(request)
    state.dirty[request.service] = None


def _begin_anew(state: BrokerState, request: Request) -> None:
    if request.journal is not None:
        state.memory.hold(request, -request.journal.size_bytes)
    request.begin_anew()


# --- time ------------------------------------------------------------------------------------------------------------


def expire(state: BrokerState, request: Request, now: float) -> None:
    """Act on the timer of a request; its deadline may have moved on since it was set."""
    _report_progress(state, request, now)
    if now >= request.due_at:
        _doubt_late(state, request, now)
        _learn_wait(request, now)
        fail(state, request, *_deadline_error(request, now), now)
    elif now >= request.hopeless_at and (refusal := _why_hopeless(state, request, now)) is not None:
        kind, text, retry_after_s = refusal
        fail(state, request, kind, text, now, retry_after_s=retry_after_s)
    elif request.state is LEASED and now >= request.doubt_at and _is_at_silent_node(state, request, now):
        _take_from_silent_node(state, request, now)
    else:
        _watch(state, request, now)


def _watch(state: BrokerState, request: Request, now: float) -> None:
    """Set the timer of a request to whatever is next."""
    when = min(request.due_at, now + request.ttl_s / LOOKS) if request.is_patient else request.due_at
    if request.hears_place and request.state is QUEUED:
        when = min(when, now + request.service.queue.tell_every_s)
    if request.is_parked:
        if now >= request.hopeless_at:
            request.hopeless_at = now + state.timing.eviction_s
        when = min(when, request.hopeless_at)
    if request.state is LEASED:
        if now >= request.doubt_at:
            request.doubt_again(now)
        when = min(when, max(request.doubt_at, now + _LEAST_DOUBT_S))
    state.request_timers.set(request, min(when, request.due_at))


def _is_at_silent_node(state: BrokerState, request: Request, now: float) -> bool:
    """Whether a node has said nothing at all since it was given a request, and another one could do it in time.

    How long a first sign takes is known from the other requests of the service; where it usually takes most of the time
    there is, or nothing has ever been answered, nobody is suspected: then all may be that slow.
    """
    node, time_s = request.node, request.deadline - request.dispatched_at
    assert node is not None
    if node.answered_at >= request.dispatched_at:
        return False
    if request.was_moved or not request.is_idempotent or request.attempts >= state.bounds.attempts:
        return False
    usual_s = request.service.usual_first_s(request.size)
    if not usual_s:
        return False
    patience_s = max(time_s / 4, _SURE * usual_s)
    if node.worked_at > request.dispatched_at:
        patience_s = max(patience_s, time_s * 2 / 3)  # it says that it computes: a long prompt, perhaps
    if not patience_s - _LEAST_DOUBT_S <= now - request.dispatched_at or patience_s > time_s * 3 / 4:
        return False
    reindex(state)
    other = request.service.load_index.best_for(node, request.demand)
    return other is not None and other.node is not node


def _take_from_silent_node(state: BrokerState, request: Request, now: float) -> None:
    """Take a request from a node that answers nothing, and give the node less."""
    node, lease = request.node, request.lease
    assert node is not None
    _silence(state, node, request, now)
    text = f"node {node.node_id} has answered nothing for {now - request.dispatched_at:.1f} s"
    request.was_moved = True
    request.move_on(now)  # the node may have been honest and slow: what is next has as long as that one had
    if lose(state, request, now, text, LossReason.NODE_MUTE):
        _watch(state, request, now)
    fence(state, node, lease, "no answer")


def _doubt_late(state: BrokerState, request: Request, now: float) -> None:
    """Count a request that has run out of its time at a node that never said a word, where others serve."""
    node = request.node
    if node is None or request.state is not LEASED or request.service.healthy < 2:
        return
    usual_s = request.service.usual_first_s(request.size)
    is_silent = max(node.answered_at, node.worked_at) < request.dispatched_at
    if is_silent and usual_s and _SURE * usual_s < now - request.dispatched_at:
        _silence(state, node, request, now)


def _silence(state: BrokerState, node: Node, request: Request, now: float) -> None:
    """Give a node nothing for a while; what it got before that counts only once."""
    if request.dispatched_at < node.silent_until or not node.most:
        return
    node.fall_silent(now)
    state.touched[node] = None
    text = f"has {len(node.running)} requests and answers none: it gets nothing until it has had time to"
    state.events.record("suspect", node.node_id, text, now)


def _report_progress(state: BrokerState, request: Request, now: float) -> None:
    """Count waiting in a queue that moves as progress; tell subscribers of progress that they do not see, and of theirs
    those who asked to hear it where their request stands."""
    told: m.Ext = {}
    if request.is_patient and now < request.ends_at:
        if request.state is QUEUED:
            request.move_on(request.service.moved_at)
        if request.announce_deadline():
            told["units"] = request.next_n
    if request.hears_place and request.state is QUEUED and not request.is_parked:
        told |= _place_of(request)
    if told:
        for subscriber in request.subscribers:
            send_progress(state, subscriber, told)


def _place_of(request: Request) -> m.Ext:
    """Say how many have their turn before a request, and in how long its node will begin; nothing as long as nothing is
    known.
    """
    service = request.service
    forecast = service.forecast(service.queue.before(request), request.work, request.priority)
    if forecast is None:
        return {}
    wait_s = forecast.wait_s + service.usual_first_s(request.size)  # a node may have some that wait as well
    return {"before": forecast.before, "wait_ms": milliseconds(wait_s)}


def _why_hopeless(state: BrokerState, request: Request, now: float) -> tuple[ErrorKind, str, float] | None:
    """Say why a parked request waits in vain: no node that it may go to has served for the eviction time.

    None: one has; or it was with a node before, so it was promised an answer, and a node that can give it is coming.
    """
    service = request.service
    if not request.is_parked or not service.healthy or service.had(request.demand, now - state.timing.eviction_s):
        return None
    if request.revision is not None:
        text = f"no node has the weights (revision {request.revision}) that began this stream"
        if service.has(Demand(request.revision, NOTHING)):
            text = f"no node with the weights that began this stream can do what it needs: {in_words(request.needs)}"
        return ErrorKind.NOT_RESUMABLE, text, 0.0
    refusal = why_unable(state, service, request.needs, now)
    is_promised = refusal is not None and refusal[0] is ErrorKind.STARTING and request.last_node is not None
    return None if is_promised else refusal


def end_grace(state: BrokerState, service: Service[Request], now: float) -> None:
    """Refuse what waits for a service that no healthy node has offered for the eviction time.

    What a node already had waits on, until its time is up: it was promised an answer.
    """
    if service.healthy:
        return
    for request in service.queue.waiting():
        if request.last_node is None:
            kind, text, retry_after_s = why_absent(state, service.name, now)
            fail(state, request, kind, text, now, retry_after_s=retry_after_s)


def _deadline_error(request: Request, now: float) -> tuple[ErrorKind, str]:
    waited_s = now - request.admitted_at
    if now >= request.ends_at:
        return (
            ErrorKind.DEADLINE,
            f"its whole time is over ({waited_s:.1f} s of it here), after {request.next_n} units",
        )
    if request.state is QUEUED:
        still = " and nobody before it made progress" if request.is_patient else ""
        return (
            ErrorKind.DEADLINE,
            f"no node was free within its time ({waited_s:.1f} s){still}; send less, or allow more",
        )
    if request.is_patient and request.next_n:
        what = "stream" if request.is_stream else "answer"
        return ErrorKind.STALLED, f"the {what} made no progress for {request.ttl_s:.1f} s after {request.next_n} units"
    return ErrorKind.DEADLINE, f"no answer within its time ({waited_s:.1f} s)"
