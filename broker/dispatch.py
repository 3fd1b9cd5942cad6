"""From the queue to a node, and back when the node is lost: what waits, what goes again, and what must not.

A request may go again if running it twice is harmless (IDEMPOTENT), if nobody has seen units that another node could
not continue, and if it has attempts, time and luck left. Otherwise it ends here, and the error says what was delivered.
"""

from __future__ import annotations

import math

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from .availability import why_absent
from .completion import Endings
from .counters import LossReason
from .history import end_try
from .leases import fence, grant, release
from .nodes import Node, Offer
from .placement import reindex
from .prefixes import place
from .requests import LOOKS, TRANSITIONS, Request, RequestEvent, RequestState
from .services import Service
from .state import BrokerState

_LEAST_DOUBT_S = 0.05
"""Timers are that exact, and no request is looked at more often."""


class Dispatcher:
    """Moves requests between queues and nodes."""

    __slots__ = ("_endings", "_state")

    def __init__(self, state: BrokerState, endings: Endings) -> None:
        self._state = state
        self._endings = endings

    # --- to a node -------------------------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Dispatch what can be dispatched, for every service where something may have changed."""
        dirty = self._state.dirty
        while dirty:
            service, _ = dirty.popitem()
            self._pump(service, now)

    def _pump(self, service: Service, now: float) -> None:
        queue, load_index = service.queue, service.load_index
        while load_index.mask:
            request = queue.pop()
            if request is None:
                return
            offer: Offer | None
            if request.last_node is None and request.revision is None:
                offer = place(service, request)
            else:
                offer = load_index.best_for(request.last_node, request.revision)
            if offer is None:
                self._park(request, now)
            else:
                grant(self._state, request, offer, now)

    def _park(self, request: Request, now: float) -> None:
        """Set aside a started stream whose weights are at no free node; if they are nowhere, it waits only so long."""
        is_nowhere = request.revision not in request.service.revisions
        if is_nowhere and not request.is_stream:
            self._begin_anew(request)
            request.service.queue.push_front(request)
            return
        request.service.queue.park(request)
        if is_nowhere:
            request.hopeless_at = now + self._state.timing.eviction_s
            self._state.request_timers.set(request, min(request.due_at, request.hopeless_at))

    # --- back from a node ------------------------------------------------------------------------------------------

    def unsent(self, request: Request) -> None:
        """Take back a request that never left this process, or that the node had no slot for: no attempt counted."""
        release(request)
        request.attempts -= 1
        if request.queued_behind < 0:
            request.queued_behind, request.queued_why = request.service.queue.count, "its node had no slot left"
        self._requeue(request)

    def lose(self, request: Request, now: float, why: str, reason: LossReason, *, crashes: int = 0) -> bool:
        """End an attempt without a result: another one begins, or the request ends (False).

        Args:
            why: In words, for whoever asked and for its story.
            reason: The same as a label of a counter.
            crashes: How many engines or nodes died of it.
        """
        state = self._state
        why = why or reason.value
        release(request)
        end_try(request, now, why)
        request.crashes += crashes
        refusal = self._why_not_again(request, now)
        if refusal is not None:
            kind, text = refusal
            self._endings.fail(request, kind, f"{why}; {text}", now)
            return False
        state.counters.redispatches += 1
        state.labelled.redispatches[reason.value] += 1
        self._requeue(request)
        return True

    def _why_not_again(self, request: Request, now: float) -> tuple[ErrorKind, str] | None:
        bounds = self._state.bounds
        if not request.is_idempotent:
            return ErrorKind.OUTCOME_UNKNOWN, "it is not idempotent, so it is not run a second time"
        if request.is_stream and request.next_n:
            if not request.is_resumable:
                return ErrorKind.NOT_RESUMABLE, f"{request.next_n} units were delivered, and it cannot be resumed"
            if request.journal is None or not request.journal.is_whole:
                return (
                    ErrorKind.WORKER_LOST,
                    "the units delivered are too many to be kept here; resume with your own copy",
                )
        if request.crashes >= bounds.crashes:
            self._state.counters.poisoned += 1
            return ErrorKind.POISON, f"{request.crashes} engines or nodes in a row died of it"
        if request.attempts >= bounds.attempts:
            return ErrorKind.WORKER_LOST, f"all {bounds.attempts} attempts are used up"
        if now >= request.due_at:
            return ErrorKind.DEADLINE, "and its time is up"
        return None

    def _requeue(self, request: Request) -> None:
        request.state = TRANSITIONS[request.state][RequestEvent.LEASE_LOST]
        request.hopeless_at = math.inf
        if not request.is_stream and (request.journal is None or not request.is_resumable):
            self._begin_anew(request)
        request.service.queue.push_front(request)
        self._state.dirty[request.service] = None

    def _begin_anew(self, request: Request) -> None:
        """Forget the units of a unary request: its client has seen none of them."""
        if request.journal is not None:
            request.held_bytes -= request.journal.size_bytes
            self._state.held_bytes -= request.journal.size_bytes
            request.journal = None
        request.next_n = 0
        request.revision = None

    # --- time ------------------------------------------------------------------------------------------------------

    def expire(self, request: Request, now: float) -> None:
        """Act on the timer of a request; its deadline may have moved on since it was set."""
        if request.is_patient and now < request.ends_at:
            self._follow(request)
        if now >= request.due_at:
            self._doubt_late(request, now)
            self._endings.fail(request, *_deadline_error(request, now), now)
        elif now >= request.hopeless_at and self._is_hopeless(request):
            text = f"no node has the weights (revision {request.revision}) that began this stream"
            self._endings.fail(request, ErrorKind.NOT_RESUMABLE, text, now)
        elif request.state is RequestState.LEASED and now >= request.doubt_at and self._is_at_silent_node(request, now):
            self._move_on(request, now)
        else:
            self._watch(request, now)

    def _watch(self, request: Request, now: float) -> None:
        """Set the timer of a request to whatever is next."""
        when = min(request.due_at, now + request.ttl_s / LOOKS) if request.is_patient else request.due_at
        if now < request.hopeless_at < when:
            when = request.hopeless_at
        if request.state is RequestState.LEASED:
            if now >= request.doubt_at:
                request.doubt_at = now + (request.deadline - now) / 4
            when = min(when, max(request.doubt_at, now + _LEAST_DOUBT_S))
        self._state.request_timers.set(request, min(when, request.due_at))

    def _is_at_silent_node(self, request: Request, now: float) -> bool:
        """Whether a node has said nothing at all since it was given a request, and another one could do it in time.

        How long a first sign takes is known from the other requests of the service; where it usually takes most of the
        time there is, or nothing has ever been answered, nobody is suspected: then all may be that slow.
        """
        offer, time_s = request.offer, request.deadline - request.dispatched_at
        assert offer is not None
        if offer.node.answered_at >= request.dispatched_at:
            return False
        if request.was_moved or not request.is_idempotent or request.attempts >= self._state.bounds.attempts:
            return False
        usual_s = request.service.usual_first_s(request.size)
        if not usual_s:
            return False
        patience_s = max(time_s / 4, 4 * usual_s)
        if offer.node.worked_at > request.dispatched_at:
            patience_s = max(patience_s, time_s * 2 / 3)  # it says that it computes: a long prompt, perhaps
        if not patience_s - _LEAST_DOUBT_S <= now - request.dispatched_at or patience_s > time_s * 3 / 4:
            return False
        other = request.service.load_index.best_for(offer.node, request.revision)
        return other is not None and other.node is not offer.node

    def _move_on(self, request: Request, now: float) -> None:
        """Take a request from a node that answers nothing, and give the node less."""
        assert request.offer is not None
        node, lease = request.offer.node, request.lease
        self._silence(node, request, now)
        text = f"node {node.node_id} has answered nothing for {now - request.dispatched_at:.1f} s"
        request.was_moved = True
        request.move_on(now)  # the node may have been honest and slow: what is next has as long as that one had
        if self.lose(request, now, text, LossReason.NODE_MUTE):
            self._watch(request, now)
        fence(self._state, node, lease, "no answer")
        reindex(node)

    def _doubt_late(self, request: Request, now: float) -> None:
        """Count a request that has run out of its time at a node that never said a word, where others serve."""
        offer = request.offer
        if offer is None or request.state is not RequestState.LEASED or request.service.healthy < 2:
            return
        usual_s, node = request.service.usual_first_s(request.size), offer.node
        is_silent = max(node.answered_at, node.worked_at) < request.dispatched_at
        if is_silent and usual_s and 4 * usual_s < now - request.dispatched_at:
            self._silence(node, request, now)

    def _silence(self, node: Node, request: Request, now: float) -> None:
        """Give a node nothing for a while; what it got before that counts only once."""
        if request.dispatched_at < node.silent_until or not node.most:
            return
        node.fall_silent(now)
        text = f"has {len(node.running)} requests and answers none: it gets nothing until it has had time to"
        self._state.events.note("suspect", node.node_id, text, now)
        reindex(node)

    def _follow(self, request: Request) -> None:
        """Count waiting in a queue that moves as progress, and tell subscribers of progress that they do not see."""
        state = self._state
        if request.state is RequestState.QUEUED:
            request.move_on(request.service.moved_at)
        if request.deadline <= request.announced_deadline:
            return
        request.announced_deadline = request.deadline
        for subscriber in request.subscribers:
            subscriber.was_acknowledged = True
            state.tell_client(subscriber.session, m.Accepted(subscriber.rid, {"units": request.next_n}))

    def _is_hopeless(self, request: Request) -> bool:
        is_waiting = request.state is RequestState.QUEUED
        return is_waiting and request.revision is not None and request.revision not in request.service.revisions

    def end_grace(self, service: Service, now: float) -> None:
        """Refuse what waits for a service that no healthy node has offered for the eviction time.

        What a node already had waits on, until its time is up: it was promised an answer.
        """
        if service.healthy:
            return
        for request in service.queue.waiting():
            if request.last_node is None:
                kind, text, retry_after_s = why_absent(self._state, service.name, now)
                self._endings.fail(request, kind, text, now, retry_after_s=retry_after_s)


def _deadline_error(request: Request, now: float) -> tuple[ErrorKind, str]:
    waited_s = now - request.admitted_at
    if now >= request.ends_at:
        return ErrorKind.DEADLINE, f"its whole time is over ({waited_s:.1f} s of it here), after {request.next_n} units"
    if request.state is RequestState.QUEUED:
        still = " and nobody before it made progress" if request.is_patient else ""
        return (
            ErrorKind.DEADLINE,
            f"no node was free within its time ({waited_s:.1f} s){still}; send less, or allow more",
        )
    if request.is_patient and request.next_n:
        what = "stream" if request.is_stream else "answer"
        return ErrorKind.STALLED, f"the {what} made no progress for {request.ttl_s:.1f} s after {request.next_n} units"
    return ErrorKind.DEADLINE, f"no answer within its time ({waited_s:.1f} s)"
