"""The same request id once more: the same client after a reconnect, or another one with the same idempotency key.

While the request lives, a duplicate becomes one more subscriber and is sent the units that it lacks. Afterwards it is
answered from the cache. A client that brings its own units (RESUME) is believed: it starts the request anew from there.
"""

from __future__ import annotations

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from .completion import Endings
from .delivery import Delivery
from .requests import Request, Subscriber
from .result_cache import CachedResult, fingerprint
from .sessions import Session
from .state import BrokerState, error


class Twins:
    """Joins subscribers to requests and outcomes."""

    __slots__ = ("_delivery", "_endings", "_state")

    def __init__(self, state: BrokerState, delivery: Delivery, endings: Endings) -> None:
        self._state = state
        self._delivery = delivery
        self._endings = endings

    def attach(self, session: Session, request: Request, from_unit: int, now: float) -> None:
        """Make a session a subscriber of a request, and send it what it lacks of the units already here."""
        rid = request.ask.rid
        if rid in session.subscribers:
            self.drop_ended(session, rid)
        subscriber = Subscriber(session, rid, now, request)
        session.subscribers[rid] = subscriber
        request.subscribers.append(subscriber)
        self._state.unacknowledged.append(subscriber)
        journal = request.journal
        if journal is not None and request.is_stream and from_unit < journal.next_n:
            chunk = journal.chunk_at(from_unit)
            self._delivery.replay(subscriber, journal, chunk or 0, None, now)

    def drop_ended(self, session: Session, rid: bytes) -> None:
        """Drop a subscriber whose request has ended, and that was still being sent the rest: its client asks anew."""
        older = session.subscribers.get(rid)
        if older is not None:
            self._delivery.drop(older)

    def join(self, session: Session, ask: m.Request, request: Request, now: float) -> bool:
        """Attach to a live request, or refuse; False if the newcomer takes its place."""
        if not _is_same(ask, request.ask):
            return self._conflict(session, ask, now)
        if ask.flags & m.RESUME and ask.resume_n:
            self._supersede(session, request, now)
            return False
        if not self._has_unit(request, ask.resume_n):
            text = f"unit {ask.resume_n} of this request is not here: it is at unit {request.next_n}"
            return self._refuse(session, ask, ErrorKind.BAD_REQUEST, text, now)
        older = _reader_to_replace(session, request)
        if older is None and len(request.subscribers) >= self._state.bounds.subscribers:
            text = f"{len(request.subscribers)} clients read this already"
            return self._refuse(session, ask, ErrorKind.RATE_LIMITED, text, now)
        if older is not None:
            self._forget(older, request)
        self._state.counters.twins += 1
        self.attach(session, request, ask.resume_n, now)
        return True

    def replay(self, session: Session, ask: m.Request, outcome: CachedResult, now: float) -> bool:
        """Answer from the outcome, or refuse; False if the request has to run (on)."""
        if not _is_same_as_ended(ask, outcome):
            return self._conflict(session, ask, now)
        if outcome.message is None or (ask.flags & m.RESUME and ask.resume_n):
            return False
        journal = outcome.journal
        is_from_start = not ask.resume_n or not outcome.is_stream
        chunk = journal.chunk_at(ask.resume_n) if journal is not None else 0 if is_from_start else None
        if chunk is None:
            text = f"unit {ask.resume_n} of this request is not here"
            return self._refuse(session, ask, ErrorKind.BAD_REQUEST, text, now)
        self._state.counters.replays += 1
        self.drop_ended(session, ask.rid)
        subscriber = Subscriber(session, ask.rid, now, None)
        session.subscribers[ask.rid] = subscriber
        self._delivery.replay(subscriber, journal, chunk, outcome.message, now)
        return True

    def _supersede(self, session: Session, request: Request, now: float) -> None:
        """End the live copy: other subscribers of it may ask again, and will then join the new one."""
        self._state.counters.superseded += 1
        older = _reader_to_replace(session, request)
        if older is not None:
            self._forget(older, request)
        self._endings.fail(request, ErrorKind.BROKER_LOST, "its client went on with it from its own copy", now)

    def _forget(self, subscriber: Subscriber, request: Request) -> None:
        request.subscribers.remove(subscriber)
        self._delivery.drop(subscriber)

    def _has_unit(self, request: Request, unit: int) -> bool:
        if not request.is_stream or unit == request.next_n:
            return True
        return request.journal is not None and request.journal.chunk_at(unit) is not None

    def _conflict(self, session: Session, ask: m.Request, now: float) -> bool:
        text = "this request id was used before, with another body or model"
        return self._refuse(session, ask, ErrorKind.CONFLICT, text, now)

    def _refuse(self, session: Session, ask: m.Request, kind: ErrorKind, text: str, now: float) -> bool:
        """Say no. To a session that reads the request already, this is the end of it: an ERROR is terminal."""
        self._state.events.note("rejected", kind.value, text, now, ask)
        older = session.subscribers.get(ask.rid)
        if older is not None:
            self._endings.abandon(older, text, now)
        self._state.tell_client(session, error(ask.rid, kind, text))
        return True


def _is_same(ask: m.Request, other: m.Request) -> bool:
    return ask.body == other.body and ask.service == other.service and not (ask.flags ^ other.flags) & m.STREAM


def _is_same_as_ended(ask: m.Request, outcome: CachedResult) -> bool:
    is_stream = bool(ask.flags & m.STREAM)
    is_alike = ask.service == outcome.service and is_stream == outcome.is_stream
    return is_alike and fingerprint(ask.body) == outcome.fingerprint


def _reader_to_replace(session: Session, request: Request) -> Subscriber | None:
    """Find the subscriber that this session or an earlier one of the same client has: the last one wins."""
    for subscriber in request.subscribers:
        if subscriber.session is session or subscriber.session.client_uuid == session.client_uuid:
            return subscriber
    return None
