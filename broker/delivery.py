"""Sends units and answers to subscribers, each as fast as it reads.

A session may be sent a window of bytes beyond what it says it has consumed. A subscriber whose window is shut lags:
its chunks wait in the journal, and go out in turn with those of its neighbours when the window opens. So a slow
subscriber costs a bounded piece of memory and nobody else's time; one that stays slow is given up.
"""

from __future__ import annotations

import math

from ..protocol import messages as m
from .journal import Journal
from .requests import Request, Subscriber
from .sessions import Session
from .state import CLIENTS, BrokerState


class Delivery:
    """Sends to subscribers, and knows who lags."""

    __slots__ = ("_state",)

    def __init__(self, state: BrokerState) -> None:
        self._state = state

    # --- the common case: the window is open, everything goes out at once ------------------------------------------

    def units(self, request: Request, message: m.WorkerPartial, chunk: int, now: float) -> list[Subscriber]:
        """Send one PARTIAL to all subscribers; `chunk` is its number in the journal. Return those that are too slow."""
        partial = m.Partial(request.ask.rid, message.seq, message.n, message.body)
        slow: list[Subscriber] = []
        for subscriber in request.subscribers:
            if subscriber.is_lagging:
                if self._is_too_slow(subscriber):
                    slow.append(subscriber)
            elif subscriber.session.sent_bytes < subscriber.session.send_until:
                self._send_units(subscriber, partial, request)
            else:
                self._lag(subscriber, request.journal, chunk, now)
        return slow

    def end(self, subscriber: Subscriber, message: m.Final | m.Error, now: float) -> None:
        """Send a subscriber its terminal message, after whatever it still lacks."""
        session = subscriber.session
        subscriber.request = None
        if not session.is_open:
            self.drop(subscriber)  # should it come back, the outcome is kept
        elif not subscriber.is_lagging and (session.sent_bytes < session.send_until or type(message) is m.Error):
            del session.subscribers[subscriber.rid]
            subscriber.was_acknowledged = True
            if type(message) is m.Final:
                session.sent_bytes += len(message.body)
            self._state.out.append((CLIENTS, session.peer, message))
        else:
            if not subscriber.is_lagging:
                self._lag(subscriber, None, 0, now)
            self._keep_for(subscriber, subscriber.journal, message)

    def accept_waiting(self, now: float) -> None:
        """Send ACCEPTED to subscribers that were sent nothing within the delay; any other message implies it."""
        unacknowledged = self._state.unacknowledged
        while self.next_accept() <= now:
            subscriber = unacknowledged.popleft()
            subscriber.was_acknowledged = True
            self._state.tell_client(subscriber.session, m.Accepted(subscriber.rid))

    def next_accept(self) -> float:
        """Return when the next ACCEPTED is due; those that have heard something need none, and no timer either."""
        unacknowledged = self._state.unacknowledged
        while unacknowledged:
            subscriber = unacknowledged[0]
            if not subscriber.was_acknowledged and subscriber.session.subscribers.get(subscriber.rid) is subscriber:
                return subscriber.since + self._state.timing.ack_delay_s
            unacknowledged.popleft()
        return math.inf

    # --- subscribers that lag ----------------------------------------------------------------------------------------

    def replay(
        self, subscriber: Subscriber, journal: Journal | None, chunk: int, ending: m.Final | m.Error | None, now: float
    ) -> None:
        """Bring a subscriber up from a chunk of the journal to the present, and to the end if that is known."""
        self._lag(subscriber, journal, chunk, now)
        if ending is not None:
            self._keep_for(subscriber, journal, ending)
        self.flush(subscriber.session, now)

    def flush(self, session: Session, now: float) -> None:
        """Send what waits, one chunk of each lagging subscriber in turn, as far as the window is open."""
        lagging = session.lagging
        while lagging and session.sent_bytes < session.send_until:
            subscriber, _ = lagging.popitem(last=False)
            if not self._send_next(subscriber):
                lagging[subscriber] = None
            session.shut_at = now
        if not lagging:
            session.shut_at = None

    def drop(self, subscriber: Subscriber) -> None:
        """Forget a subscriber; it is sent nothing more."""
        session = subscriber.session
        if session.subscribers.get(subscriber.rid) is subscriber:
            del session.subscribers[subscriber.rid]
        session.lagging.pop(subscriber, None)
        subscriber.is_lagging = False
        subscriber.journal = subscriber.ending = None
        self._state.held_bytes -= subscriber.held_bytes
        subscriber.held_bytes = 0
        if not session.lagging:
            session.shut_at = None

    def next_unit(self, subscriber: Subscriber, request: Request | None) -> int:
        """Return the first unit that a subscriber has not been sent."""
        journal = subscriber.journal
        if subscriber.is_lagging and journal is not None and subscriber.cursor < journal.end:
            return journal.chunk(subscriber.cursor)[0]
        return request.next_n if request is not None and request.is_stream else 0

    def _lag(self, subscriber: Subscriber, journal: Journal | None, chunk: int, now: float) -> None:
        session = subscriber.session
        subscriber.is_lagging = True
        subscriber.journal = journal
        subscriber.cursor = chunk
        session.lagging[subscriber] = None
        if session.is_open and session.shut_at is None:
            session.shut_at = now
            self._state.session_timers.set(session, now + self._state.timing.eviction_s)

    def _keep_for(self, subscriber: Subscriber, journal: Journal | None, ending: m.Final | m.Error) -> None:
        """Let a subscriber outlive its request: what it keeps alive is counted once more, so that it is bounded."""
        subscriber.ending = ending
        size = journal.size_bytes if journal is not None else 0
        subscriber.held_bytes = size + (len(ending.body) if type(ending) is m.Final else 0)
        self._state.held_bytes += subscriber.held_bytes

    def _is_too_slow(self, subscriber: Subscriber) -> bool:
        journal = subscriber.journal
        return journal is not None and journal.bytes_from(subscriber.cursor) > self._state.bounds.unsent_bytes

    def _send_next(self, subscriber: Subscriber) -> bool:
        """Send a lagging subscriber one thing; True when it lags no more."""
        journal = subscriber.journal
        if journal is not None and subscriber.cursor < journal.end:
            seq, n, body = journal.chunk(subscriber.cursor)
            subscriber.cursor += 1
            request = subscriber.request
            self._send_units(subscriber, m.Partial(subscriber.rid, seq, n, body), request)
            if subscriber.cursor < journal.end or subscriber.ending is not None:
                return False
        if subscriber.ending is not None:
            self._send_end(subscriber, subscriber.ending)
        subscriber.is_lagging = False
        subscriber.journal = None
        return True

    # --- sending ---------------------------------------------------------------------------------------------------

    def _send_units(self, subscriber: Subscriber, partial: m.Partial, request: Request | None) -> None:
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
        self._state.out.append((CLIENTS, session.peer, partial))

    def _send_end(self, subscriber: Subscriber, message: m.Final | m.Error) -> None:
        session = subscriber.session
        if type(message) is m.Final:
            session.sent_bytes += len(message.body)
        subscriber.was_acknowledged = True
        self._state.out.append((CLIENTS, session.peer, message))
        self.drop(subscriber)
