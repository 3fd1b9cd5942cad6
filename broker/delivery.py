"""Sends units and answers to subscribers, each as fast as it reads.

A session may be sent a window of bytes beyond what it says it has consumed. While its window is open, everything goes
out at once and nothing is kept for it: that is the common case, and it costs one append per subscriber.

A subscriber that meets a shut window *lags*: it remembers the number of the chunk it lacks, and nothing is copied,
because the journal of the request has the chunks anyway. When the window opens, lagging subscribers of the session send
one chunk each in turn, so a long answer does not hold up a short one. One that catches up lags no more.

What bounds this: a stream of which more than STREAM_BUFFER_BYTES are unsent, or a window shut for the eviction time,
ends with `slow_reader`. So a slow subscriber costs a bounded piece of memory and nobody else's time. A subscriber that
outlives its request keeps journal and answer alive; both are counted for it, so that they cannot slip past the bound of
the memory.
"""

from __future__ import annotations

import math

from ..protocol import messages as m
from .journal import Journal
from .requests import Request, Session, Subscriber
from .state import CLIENTS, BrokerState

# --- the common case: the window is open, everything goes out at once ------------------------------------------------


def send_units(
    state: BrokerState, request: Request, message: m.WorkerPartial, chunk: int, now: float
) -> list[Subscriber]:
    """Send one PARTIAL to all subscribers; `chunk` is its number in the journal. Return those that are too slow."""
    partial = m.Partial(request.ask.rid, message.seq, message.n, message.body)
    slow: list[Subscriber] = []
    for subscriber in request.subscribers:
        session = subscriber.session
        if subscriber.is_lagging:
            if _is_too_slow(state, subscriber):
                slow.append(subscriber)
        elif session.sent_bytes < session.send_until:
            _send_partial(state, subscriber, partial, request)
        else:
            _lag(state, subscriber, request.journal, chunk, now)
    return slow


def send_ending(state: BrokerState, subscriber: Subscriber, message: m.Final | m.Error, now: float) -> None:
    """Send a subscriber its terminal message, after whatever it still lacks."""
    session = subscriber.session
    subscriber.request = None
    if not session.is_open:
        drop(state, subscriber)  # should it come back, the result is kept
    elif not subscriber.is_lagging and (session.sent_bytes < session.send_until or type(message) is m.Error):
        del session.subscribers[subscriber.rid]
        subscriber.was_acknowledged = True
        if type(message) is m.Final:
            session.sent_bytes += len(message.body)
        state.out.append((CLIENTS, session.peer, message))
    else:
        if not subscriber.is_lagging:
            _lag(state, subscriber, None, 0, now)
        _keep_ending(state, subscriber, message)


def acknowledge(state: BrokerState, now: float) -> None:
    """Send ACCEPTED to subscribers that were sent nothing within the delay; any other message implies it."""
    while next_acknowledgement(state) <= now:
        subscriber = state.unacknowledged.popleft()
        send_progress(state, subscriber, {})


def next_acknowledgement(state: BrokerState) -> float:
    """Return when the next ACCEPTED is due; those that were sent something need none, and no timer either."""
    unacknowledged = state.unacknowledged
    while unacknowledged:
        subscriber = unacknowledged[0]
        if not subscriber.was_acknowledged and subscriber.session.subscribers.get(subscriber.rid) is subscriber:
            return subscriber.since + state.timing.ack_delay_s
        unacknowledged.popleft()
    return math.inf


def send_progress(state: BrokerState, subscriber: Subscriber, ext: m.Ext) -> None:
    """Send ACCEPTED, with the progress in `ext` if there is any to tell."""
    subscriber.was_acknowledged = True
    state.tell_client(subscriber.session, m.Accepted(subscriber.rid, ext))


# --- who is sent to --------------------------------------------------------------------------------------------------


def subscribe(state: BrokerState, session: Session, request: Request, from_unit: int, now: float) -> None:
    """Make a session a subscriber of a request, and send it what it lacks of the units already here."""
    rid = request.ask.rid
    if rid in session.subscribers:
        drop(state, session.subscribers[rid])
    subscriber = Subscriber(session, rid, now, request)
    session.subscribers[rid] = subscriber
    request.subscribers.append(subscriber)
    state.unacknowledged.append(subscriber)
    journal = request.journal
    if journal is not None and request.is_stream and from_unit < journal.next_n:
        _lag(state, subscriber, journal, journal.chunk_at(from_unit) or 0, now)
        flush(state, session, now)


def replay(
    state: BrokerState,
    session: Session,
    journal: Journal | None,
    chunk: int,
    ending: m.Final | m.Error,
    now: float,
    *,
    model: tuple[str, str] | None,
) -> None:
    """Send a session the units from a chunk on, and the end, of a request that has ended; `model` made them."""
    rid = ending.rid
    assert rid is not None
    if rid in session.subscribers:
        drop(state, session.subscribers[rid])
    subscriber = Subscriber(session, rid, now, None, model=model)
    session.subscribers[rid] = subscriber
    _lag(state, subscriber, journal, chunk, now)
    _keep_ending(state, subscriber, ending)
    flush(state, session, now)


def drop(state: BrokerState, subscriber: Subscriber) -> int:
    """Forget a subscriber: it is sent nothing more. Return the first unit that it was not sent."""
    session, request, journal = subscriber.session, subscriber.request, subscriber.journal
    next_unit = request.next_n if request is not None and request.is_stream else 0
    if subscriber.is_lagging and journal is not None and subscriber.cursor < journal.end:
        next_unit = journal.chunk(subscriber.cursor)[0]
    if session.subscribers.get(subscriber.rid) is subscriber:
        del session.subscribers[subscriber.rid]
    session.lagging.pop(subscriber, None)
    subscriber.is_lagging = False
    subscriber.request = subscriber.journal = subscriber.ending = None
    state.memory.release(subscriber)
    if not session.lagging:
        session.shut_at = None
    return next_unit


# --- subscribers that lag --------------------------------------------------------------------------------------------


def flush(state: BrokerState, session: Session, now: float) -> None:
    """Send what waits, one chunk of each lagging subscriber in turn, as far as the window is open."""
    lagging = session.lagging
    while lagging and session.sent_bytes < session.send_until:
        subscriber, _ = lagging.popitem(last=False)
        if not _send_next(state, subscriber):
            lagging[subscriber] = None
        session.shut_at = now
    if not lagging:
        session.shut_at = None


def _lag(state: BrokerState, subscriber: Subscriber, journal: Journal | None, chunk: int, now: float) -> None:
    session = subscriber.session
    subscriber.is_lagging = True
    subscriber.journal = journal
    subscriber.cursor = chunk
    session.lagging[subscriber] = None
    if session.is_open and session.shut_at is None:
        session.shut_at = now
        state.session_timers.set(session, now + state.timing.eviction_s)


def _keep_ending(state: BrokerState, subscriber: Subscriber, ending: m.Final | m.Error) -> None:
    """Let a subscriber outlive its request: what it keeps alive is counted once more, so that it is bounded."""
    subscriber.ending = ending
    size = subscriber.journal.size_bytes if subscriber.journal is not None else 0
    state.memory.hold(subscriber, size + (len(ending.body) if type(ending) is m.Final else 0))


def _is_too_slow(state: BrokerState, subscriber: Subscriber) -> bool:
    journal = subscriber.journal
    return journal is not None and journal.bytes_from(subscriber.cursor) > state.bounds.unsent_bytes


def _send_next(state: BrokerState, subscriber: Subscriber) -> bool:
    """Send a lagging subscriber one thing; True when it lags no more."""
    journal = subscriber.journal
    if journal is not None and subscriber.cursor < journal.end:
        seq, n, body = journal.chunk(subscriber.cursor)
        subscriber.cursor += 1
        _send_partial(state, subscriber, m.Partial(subscriber.rid, seq, n, body), subscriber.request)
        if subscriber.cursor < journal.end or subscriber.ending is not None:
            return False
    if subscriber.ending is not None:
        if type(subscriber.ending) is m.Final:
            subscriber.session.sent_bytes += len(subscriber.ending.body)
        state.out.append((CLIENTS, subscriber.session.peer, subscriber.ending))
        drop(state, subscriber)
    subscriber.is_lagging = False
    subscriber.journal = None
    return True


def _send_partial(state: BrokerState, subscriber: Subscriber, partial: m.Partial, request: Request | None) -> None:
    session = subscriber.session
    session.sent_bytes += len(partial.body)
    subscriber.was_acknowledged = True
    if not subscriber.knows_revision and request is not None and request.revision is not None:
        subscriber.knows_revision = True
        ext: m.Ext = {"revision": request.revision, "service": request.service.name}
        prompt_tokens = (request.report or {}).get("prompt_tokens")
        if isinstance(prompt_tokens, int):
            ext["prompt_tokens"] = prompt_tokens
        partial = m.Partial(partial.rid, partial.seq, partial.n, partial.body, ext)
    elif subscriber.model is not None and not subscriber.knows_revision:
        subscriber.knows_revision = True
        service, revision = subscriber.model
        ext = {"revision": revision, "service": service}
        partial = m.Partial(partial.rid, partial.seq, partial.n, partial.body, ext)
    state.out.append((CLIENTS, session.peer, partial))
