"""How requests end: exactly one terminal message for each, sent to every subscriber and kept for who asks again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from ..protocol.snapshot import SCHEMA_VERSION, TOO_LARGE
from .bounds import OVERHEAD_BYTES
from .counters import Stage
from .delivery import Delivery
from .history import timings
from .leases import fence, reindex_and_wake, release
from .requests import OVER, QUEUED, TRANSITIONS, Request, RequestState, Subscriber
from .result_cache import CachedResult, fingerprint
from .state import BrokerState, error

_CANCELLED: Final = 499
_UNSENDABLE: Final = "the broker has an answer that no message can carry; see its log"
_NO_FAILURES: Final = frozenset({ErrorKind.CANCELLED, ErrorKind.BROKER_LOST})
"""Nobody waits any more, or its client goes on with it from its own copy."""
_STAGES: Final = {
    RequestState.QUEUED: Stage.QUEUED,
    RequestState.LEASED: Stage.PREFILL,
    RequestState.STREAMING: Stage.DECODE,
}


class Endings:
    """Ends requests and subscribers."""

    __slots__ = ("_delivery", "_state")

    def __init__(self, state: BrokerState, delivery: Delivery) -> None:
        self._state = state
        self._delivery = delivery

    def end(self, request: Request, message: m.Final | m.Error, now: float) -> None:
        """End a request that holds no lease (any more)."""
        state, rid = self._state, request.ask.rid
        stage = request.state
        if "traceparent" in request.ext:
            message = msgspec.structs.replace(message, ext=timings(state.broker_id, request, now))
        if type(message) is m.Final:
            request.next_n = message.total_n
        state.history.close(request, message, now)
        request.state = TRANSITIONS[stage][OVER]
        if stage is QUEUED:
            request.service.queue.discard(request)
        state.request_timers.clear(request)
        del request.user.requests[rid]
        state.held_bytes -= request.held_bytes
        if type(message) is m.Final:
            self._keep(request, message, len(message.body), now)
        elif type(message) is m.Error and _is_worth_keeping(request, message):
            # Of a cancelled one there is no answer to give again, only what there is to go on from.
            self._keep(request, None if message.code == _CANCELLED else message, 0, now)
        for subscriber in request.subscribers:
            self._delivery.end(subscriber, message, now)
        request.subscribers.clear()
        request.journal = None

    def fail(
        self, request: Request, kind: ErrorKind, text: str, now: float, *, retry_after_s: float = 0.0, reason: str = ""
    ) -> None:
        """End a request with an error, wherever it is; a node that works on it is told to stop."""
        node = None
        if request.offer is not None:
            lease = request.lease
            node = release(request)
            fence(self._state, node, lease, reason or kind.value)
        if kind not in _NO_FAILURES:
            self._state.note_failure(kind, text, request.ask, now)
        resume_n = request.next_n if request.is_stream else 0
        ending = error(request.ask.rid, kind, text, retry_after_s=retry_after_s, resume_n=resume_n)
        self.end(request, ending, now)
        if node is not None:
            reindex_and_wake(self._state, node)

    def dismiss_reader(self, subscriber: Subscriber, kind: ErrorKind, text: str, now: float) -> None:
        """End one subscriber with an error; a request that nobody reads any more is cancelled with it."""
        request = subscriber.request
        resume_n = self._delivery.next_unit(subscriber, request)
        self._state.tell_client(subscriber.session, error(subscriber.rid, kind, text, resume_n=resume_n))
        self.abandon(subscriber, text, now)

    def abandon(self, subscriber: Subscriber, text: str, now: float) -> None:
        """Drop a subscriber without a word; a request that nobody reads any more is cancelled with it."""
        request = subscriber.request
        subscriber.request = None
        self._delivery.drop(subscriber)
        if request is None:
            return
        request.subscribers.remove(subscriber)
        if not request.subscribers:
            self._state.counters.cancelled += 1
            self._state.labelled.cancellations[_STAGES[request.state].value] += 1
            self.fail(request, ErrorKind.CANCELLED, text, now, reason=text[:64])

    def replace_unpackable(self, is_worker: bool, peer: bytes, messages: Sequence[m.Message], now: float) -> None:  # noqa: FBT001
        """Say to a peer that what it was to be told cannot be sent: that request, or that question, ends here."""
        state = self._state
        node = state.nodes.get(peer) if is_worker else None
        session = None if is_worker else state.sessions.get(peer)
        for message in messages:
            if node is not None and isinstance(message, m.Dispatch):
                request = node.running.get(message.lease)
                if request is not None:
                    self.fail(request, ErrorKind.TOO_LARGE, _UNSENDABLE, now)
            elif session is not None and isinstance(message, m.Status):
                state.tell_client(session, m.Status(message.qid, TOO_LARGE, SCHEMA_VERSION, b"", {"text": _UNSENDABLE}))
            elif session is not None and isinstance(message, m.Partial | m.Final | m.Error):
                subscriber = session.subscribers.get(message.rid) if message.rid is not None else None
                if subscriber is not None:
                    self.abandon(subscriber, _UNSENDABLE, now)
                state.tell_client(session, error(message.rid, ErrorKind.TOO_LARGE, _UNSENDABLE))

    def _keep(self, request: Request, message: m.Final | m.Error | None, body_bytes: int, now: float) -> None:
        ask = request.ask
        is_stream = bool(ask.flags & m.STREAM)
        journal = request.journal if is_stream else None
        size = OVERHEAD_BYTES + body_bytes + (journal.size_bytes if journal is not None else 0)
        digest = fingerprint(ask.body)
        revision = request.revision
        self._state.result_cache.add(
            CachedResult(request.user, ask.rid, ask.service, digest, is_stream, message, journal, revision, now, size)
        )


def _is_worth_keeping(request: Request, message: m.Error) -> bool:
    """Say whether an error is final: one that invites another try is not, since that try must run."""
    if message.code != _CANCELLED:
        return not message.retryable
    return request.is_stream and request.is_resumable and request.journal is not None and request.journal.is_whole
