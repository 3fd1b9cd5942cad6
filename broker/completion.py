"""How requests end: exactly one terminal message for each, sent to every subscriber and kept for who asks again.

`end` is the only way out, whatever the reason and wherever the request is, and `record_end` is the one place that
counts it, so that counters, labels, events, history and the service's own figures cannot contradict each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from ..protocol.snapshot import SCHEMA_VERSION, TOO_LARGE
from .bounds import OVERHEAD_BYTES
from .counters import Stage
from .delivery import drop, send_ending
from .leases import fence, release
from .requests import Request, RequestState, Subscriber
from .result_cache import CachedResult, fingerprint
from .state import BrokerState, error

_CANCELLED: Final = 499
_LEARN_EVERY: Final = 32
"""While nobody waits, so many answers teach as much as one: how long they take matters where somebody does."""
_UNSENDABLE: Final = "the broker has an answer that no message can carry; see its log"
_EXPIRED: Final = frozenset({ErrorKind.DEADLINE.value, ErrorKind.STALLED.value})
_STAGES: Final = {
    RequestState.QUEUED: Stage.QUEUED,
    RequestState.LEASED: Stage.PREFILL,
    RequestState.STREAMING: Stage.DECODE,
}


def end(
    state: BrokerState, request: Request, ending: m.Final | m.Error, now: float, *, is_superseded: bool = False
) -> None:
    """End a request: take its lease or its place in the queue, keep its answer, and send that to its subscribers.

    `is_superseded`: its client goes on with it from its own copy, so nobody has failed.
    """
    ask = request.ask
    if "traceparent" in request.ext:
        ending = msgspec.structs.replace(ending, ext=state.history.timings(request, now))
    is_remembered = record_end(state, request, ending, now, is_superseded=is_superseded)
    if request.offer is not None:
        release(state, request)
    elif request.is_waiting:
        request.service.queue.discard(request)
    state.request_timers.clear(request)
    del request.user.requests[ask.rid]
    state.memory.release(request)
    request.finish(ending)
    if type(ending) is m.Final:
        _keep_result(state, request, ending, len(ending.body), now)
    elif type(ending) is m.Error and _is_worth_keeping(request, ending):
        # Of a cancelled one there is no answer to give again, only what there is to go on from.
        _keep_result(state, request, None if ending.code == _CANCELLED else ending, 0, now)
    for subscriber in request.subscribers:
        send_ending(state, subscriber, ending, now)
    request.subscribers.clear()
    if is_remembered:
        request.slim()


def record_end(
    state: BrokerState, request: Request, ending: m.Final | m.Error, now: float, *, is_superseded: bool
) -> bool:
    """Count how a request ends, while it still has its lease; False if its history is not kept."""
    counters = state.counters
    if type(ending) is m.Final:
        counters.completed += 1
        service, trace, first_at = request.service, request.trace, request.first_at
        lost = trace.lost if trace is not None else None
        queued_s = lost[0].dispatched_s if lost else request.dispatched_at - request.admitted_at
        context = request.offer.spec.context if request.offer is not None else 0
        ran_s, whole_s = now - request.dispatched_at, now - request.admitted_at
        tokens = service.note_result(ending.meta, context, queued_s, ran_s, whole_s)
        if service.queue.count or service.answers % _LEARN_EVERY == 1:
            service.predictor.times.learn(request.work, ran_s)
        if request.charged and tokens:
            service.queue.settle(request, tokens)
        further = ending.total_n - request.from_unit - request.first_n
        if first_at is not None and further > 0:
            service.token_time.add((now - first_at) / further)
    elif type(ending) is m.Error:
        if request.charged:
            request.service.queue.settle(request, request.tokens_so_far)
        reason = ending.reason
        if reason == ErrorKind.CANCELLED.value and not request.subscribers:  # else a node gave it up by itself
            counters.cancelled += 1
            state.labelled.cancellations[_STAGES[request.state].value] += 1
        elif is_superseded:
            counters.superseded += 1
        else:
            failures = state.labelled.failures
            failures[reason] = failures.get(reason, 0) + 1  # what a node alone refuses begins when it happens
            counters.expired += reason in _EXPIRED
            counters.failed += reason not in _EXPIRED
            counters.poisoned += reason == ErrorKind.POISON.value
            state.events.record("request_failed", reason, ending.text, now, request.ask)
    return state.history.add(request, ending, now)


def fail(
    state: BrokerState,
    request: Request,
    kind: ErrorKind,
    text: str,
    now: float,
    *,
    retry_after_s: float = 0.0,
    reason: str = "",
    is_superseded: bool = False,
) -> None:
    """End a request with an error, wherever it is; a node that works on it is told to stop."""
    if request.node is not None:
        fence(state, request.node, request.lease, reason or kind.value)
    resume_n = request.next_n if request.is_stream else 0
    ending = error(request.ask.rid, kind, text, retry_after_s=retry_after_s, resume_n=resume_n)
    end(state, request, ending, now, is_superseded=is_superseded)


def dismiss(state: BrokerState, subscriber: Subscriber, kind: ErrorKind, text: str, now: float) -> None:
    """End one subscriber with an error; a request that nobody waits for any more is cancelled with it."""
    state.counters.slow_readers += kind is ErrorKind.SLOW_READER
    resume_n = _unsubscribe(state, subscriber, text, now)
    state.tell_client(subscriber.session, error(subscriber.rid, kind, text, resume_n=resume_n))


def abandon(state: BrokerState, subscriber: Subscriber, text: str, now: float) -> None:
    """Drop a subscriber without a word; a request that nobody waits for any more is cancelled with it."""
    _unsubscribe(state, subscriber, text, now)


def abandon_unpackable(
    state: BrokerState, peer: bytes, messages: Sequence[m.Message], now: float, *, is_worker: bool
) -> None:
    """Tell a peer that what it was to be sent cannot be packed: that request, or that question, ends here."""
    node = state.nodes.get(peer) if is_worker else None
    session = None if is_worker else state.sessions.get(peer)
    for message in messages:
        if node is not None and isinstance(message, m.Dispatch):
            request = state.leases.get(message.lease)
            if request is not None and request.node is node:
                fail(state, request, ErrorKind.TOO_LARGE, _UNSENDABLE, now)
        elif session is not None and isinstance(message, m.Status):
            state.tell_client(session, m.Status(message.qid, TOO_LARGE, SCHEMA_VERSION, b"", {"text": _UNSENDABLE}))
        elif session is not None and isinstance(message, m.Partial | m.Final | m.Error):
            subscriber = session.subscribers.get(message.rid) if message.rid is not None else None
            if subscriber is not None:
                abandon(state, subscriber, _UNSENDABLE, now)
            state.tell_client(session, error(message.rid, ErrorKind.TOO_LARGE, _UNSENDABLE))


def _unsubscribe(state: BrokerState, subscriber: Subscriber, text: str, now: float) -> int:
    request = subscriber.request
    next_unit = drop(state, subscriber)
    if request is not None:
        request.subscribers.remove(subscriber)
        if not request.subscribers:
            fail(state, request, ErrorKind.CANCELLED, text, now, reason=text[:64])
    return next_unit


def _keep_result(
    state: BrokerState, request: Request, message: m.Final | m.Error | None, body_bytes: int, now: float
) -> None:
    ask, owner = request.ask, request.user.results
    is_stream = bool(ask.flags & m.STREAM)
    journal = request.journal if is_stream else None
    size = OVERHEAD_BYTES + body_bytes + (journal.size_bytes if journal is not None else 0)
    digest = fingerprint(ask.body)
    state.result_cache.add(
        CachedResult(
            owner, ask.rid, request.service.name, digest, is_stream, message, journal, request.revision, now, size
        )
    )


def _is_worth_keeping(request: Request, message: m.Error) -> bool:
    """Whether an error is final: one that invites another try is not, since that try must run."""
    if message.code != _CANCELLED:
        return not message.retryable
    return request.is_stream and request.is_resumable and request.journal is not None and request.journal.is_whole
