"""The same request id once more: the same client after a reconnect, or another one with the same idempotency key.

While the request lives, a duplicate becomes one more subscriber and is sent the units that it lacks. Afterwards it is
answered from the cache. A client that brings its own units (RESUME) is believed: it starts the request anew from there.
"""

from __future__ import annotations

from typing import NamedTuple

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from ..protocol.limits import MAX_RESUME_BYTES
from .completion import abandon, fail
from .delivery import drop, replay, subscribe
from .journal import Journal, split_blob
from .requests import Request, Session, Subscriber
from .result_cache import CachedResult, fingerprint
from .state import BrokerState, error


class Start(NamedTuple):
    """Where a request begins: after the units of a journal, made by the weights of a revision.

    `replaces`: the cached result of the same id, which goes when the request has come in.
    """

    journal: Journal | None
    revision: str | None
    replaces: CachedResult | None = None


FROM_THE_BEGINNING = Start(None, None)


def resolve(state: BrokerState, session: Session, ask: m.Request, now: float) -> Start | None:
    """Join a request that is known here, or answer from the cache; return from where it has to run, if it has to."""
    user, rid = session.user, ask.rid
    request = user.requests.get(rid)
    if request is not None:
        is_superseding = _is_same(ask, request.ask) and ask.flags & m.RESUME and ask.resume_n
        if not is_superseding:
            _join(state, session, ask, request, now)
            return None
        _supersede(state, session, request, now)
    cached = user.results.get(rid)
    if cached is not None and not _is_same_as_ended(ask, cached):
        _refuse_conflict(state, session, ask, now)
        return None
    if cached is not None and cached.message is not None and not (ask.flags & m.RESUME and ask.resume_n):
        _answer_again(state, session, ask, cached, cached.message, now)
        return None
    start = _find_start(ask, cached)
    if isinstance(start, Start):
        return start
    refuse(state, session, ask, *start, now)
    return None


def refuse(
    state: BrokerState,
    session: Session,
    ask: m.Request,
    kind: ErrorKind,
    text: str,
    now: float,
    *,
    retry_after_s: float = 0.0,
) -> None:
    """Say no. To a session that waits for the same request already, this is the end of it: an ERROR is terminal."""
    state.events.record("rejected", kind.value, text, now, ask)
    older = session.subscribers.get(ask.rid)
    if older is not None:
        abandon(state, older, text, now)
    state.tell_client(session, error(ask.rid, kind, text, retry_after_s=retry_after_s))


def _join(state: BrokerState, session: Session, ask: m.Request, request: Request, now: float) -> None:
    """Subscribe to a live request, in place of the subscription that this client has already."""
    if not _is_same(ask, request.ask):
        _refuse_conflict(state, session, ask, now)
        return
    if not _has_unit(request, ask.resume_n):
        text = f"unit {ask.resume_n} of this request is not here: it is at unit {request.next_n}"
        refuse(state, session, ask, ErrorKind.BAD_REQUEST, text, now)
        return
    older = _subscriber_to_replace(session, request)
    if older is None and len(request.subscribers) >= state.bounds.subscribers:
        text = f"{len(request.subscribers)} clients read this already"
        refuse(state, session, ask, ErrorKind.RATE_LIMITED, text, now)
        return
    if older is not None:
        _unsubscribe(state, older, request)
    state.counters.twins += 1
    subscribe(state, session, request, ask.resume_n, now)


def _answer_again(
    state: BrokerState,
    session: Session,
    ask: m.Request,
    cached: CachedResult,
    ending: m.Final | m.Error,
    now: float,
) -> None:
    """Answer from the cache, or refuse if the unit to go on from is not there."""
    journal = cached.journal
    is_from_start = not ask.resume_n or not ask.flags & m.STREAM
    chunk = journal.chunk_at(ask.resume_n) if journal is not None else 0 if is_from_start else None
    if chunk is None:
        refuse(state, session, ask, ErrorKind.BAD_REQUEST, f"unit {ask.resume_n} of this request is not here", now)
        return
    state.counters.replays += 1
    model = None if cached.revision is None else (cached.service, cached.revision)
    replay(state, session, journal, chunk, ending, now, model=model)


def _supersede(state: BrokerState, session: Session, request: Request, now: float) -> None:
    """End the live copy: other subscribers of it may ask again, and will then join the new one."""
    older = _subscriber_to_replace(session, request)
    if older is not None:
        _unsubscribe(state, older, request)
    text = "its client went on with it from its own copy"
    fail(state, request, ErrorKind.BROKER_LOST, text, now, is_superseded=True)


def _unsubscribe(state: BrokerState, subscriber: Subscriber, request: Request) -> None:
    request.subscribers.remove(subscriber)
    drop(state, subscriber)


def _refuse_conflict(state: BrokerState, session: Session, ask: m.Request, now: float) -> None:
    text = "this request id was used before, with another body or model"
    refuse(state, session, ask, ErrorKind.CONFLICT, text, now)


def _has_unit(request: Request, unit: int) -> bool:
    if not request.is_stream or unit == request.next_n:
        return True
    return request.journal is not None and request.journal.chunk_at(unit) is not None


def _is_same(ask: m.Request, other: m.Request) -> bool:
    return ask.body == other.body and ask.service == other.service and not (ask.flags ^ other.flags) & m.STREAM


def _is_same_as_ended(ask: m.Request, cached: CachedResult) -> bool:
    is_stream = bool(ask.flags & m.STREAM)
    is_alike = ask.service == cached.service and is_stream == cached.is_stream
    return is_alike and fingerprint(ask.body) == cached.fingerprint


def _subscriber_to_replace(session: Session, request: Request) -> Subscriber | None:
    """Find the subscriber that this session or an earlier one of the same client has: the last one wins."""
    for subscriber in request.subscribers:
        if subscriber.session is session or subscriber.session.client_uuid == session.client_uuid:
            return subscriber
    return None


def _find_start(ask: m.Request, cached: CachedResult | None) -> Start | tuple[ErrorKind, str]:
    """Find the units to go on from: the client's own, or those of a cancelled stream; or say why there are none."""
    resume_n = ask.resume_n
    journal, revision = (cached.journal, cached.revision) if cached is not None else (None, None)
    if resume_n and not ask.flags & m.RESUMABLE:
        return ErrorKind.NOT_RESUMABLE, f"the request is not resumable, and {resume_n} units of it were delivered"
    if resume_n and ask.flags & m.RESUME:
        if len(ask.resume) > MAX_RESUME_BYTES:
            return ErrorKind.TOO_LARGE, f"the units to resume from are over {MAX_RESUME_BYTES} bytes"
        if resume_n > len(ask.resume):
            return ErrorKind.BAD_REQUEST, f"{len(ask.resume)} bytes cannot hold {resume_n} units"
        journal, revision = _journal_of(ask), _revision_of(ask)
    if journal is not None and ask.flags & m.RESUMABLE and journal.chunk_at(resume_n) is not None:
        return Start(journal, revision, cached)
    if resume_n:
        return ErrorKind.BAD_REQUEST, f"this broker does not hold unit {resume_n}; send the units before it (RESUME)"
    return Start(None, None, cached)


def _revision_of(ask: m.Request) -> str | None:
    revision = ask.ext.get("revision")
    return revision if isinstance(revision, str) else None


def _journal_of(ask: m.Request) -> Journal | None:
    split = split_blob(ask.resume)
    return Journal(split[1], split[0], ask.resume_n) if split is not None and split[0] else None
