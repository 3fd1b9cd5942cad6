"""From a node to every reader, each as fast as it takes it.

A session may be sent a window of bytes beyond what it says it has consumed. A reader that meets a shut window lags: its
chunks wait in the journal, and go out in turn with those of its neighbours when the window opens. So a slow reader
costs a bounded piece of memory and nobody else's time; one that stays slow is given up.
"""

from __future__ import annotations

import math

from ..protocol import messages as m
from .state import CLIENTS, House
from .journal import Journal
from .requests import Reader, Request
from .sessions import Session


class Delivery:
    """Sends to readers, and knows who lags."""

    __slots__ = ("_house",)

    def __init__(self, house: House) -> None:
        self._house = house

    # --- the common case: the window is open, everything goes out at once ------------------------------------------

    def units(self, request: Request, message: m.WorkerPartial, chunk: int, now: float) -> list[Reader]:
        """Send one PARTIAL to all readers; `chunk` is its number in the journal. Return those that are too slow."""
        partial = m.Partial(request.ask.rid, message.seq, message.n, message.body)
        slow: list[Reader] = []
        for reader in request.readers:
            if reader.is_lagging:
                if self._is_too_slow(reader):
                    slow.append(reader)
            elif reader.session.sent_bytes < reader.session.send_until:
                self._send_units(reader, partial, request)
            else:
                self._lag(reader, request.journal, chunk, now)
        return slow

    def end(self, reader: Reader, message: m.Final | m.Error, now: float) -> None:
        """Send a reader its terminal message, after whatever it still lacks."""
        session = reader.session
        reader.request = None
        if not session.is_open:
            self.drop(reader)  # should it come back, the outcome is kept
        elif not reader.is_lagging and (session.sent_bytes < session.send_until or type(message) is m.Error):
            del session.readers[reader.rid]
            reader.is_heard = True
            if type(message) is m.Final:
                session.sent_bytes += len(message.body)
            self._house.out.append((CLIENTS, session.peer, message))
        else:
            if not reader.is_lagging:
                self._lag(reader, None, 0, now)
            self._keep_for(reader, reader.journal, message)

    def accept_waiting(self, now: float) -> None:
        """Send ACCEPTED to readers that have heard nothing for the delay; any other message would have implied it."""
        unheard = self._house.unheard
        while self.next_accept() <= now:
            reader = unheard.popleft()
            reader.is_heard = True
            self._house.tell_client(reader.session, m.Accepted(reader.rid))

    def next_accept(self) -> float:
        """Return when the next ACCEPTED is due; those that have heard something need none, and no timer either."""
        unheard = self._house.unheard
        while unheard:
            reader = unheard[0]
            if not reader.is_heard and reader.session.readers.get(reader.rid) is reader:
                return reader.since + self._house.timing.ack_delay_s
            unheard.popleft()
        return math.inf

    # --- readers that lag ------------------------------------------------------------------------------------------

    def replay(
        self, reader: Reader, journal: Journal | None, chunk: int, ending: m.Final | m.Error | None, now: float
    ) -> None:
        """Bring a reader up from a chunk of the journal to the present, and to the end if that is known."""
        self._lag(reader, journal, chunk, now)
        if ending is not None:
            self._keep_for(reader, journal, ending)
        self.flush(reader.session, now)

    def flush(self, session: Session, now: float) -> None:
        """Send what waits, one chunk of each lagging reader in turn, as far as the window is open."""
        lagging = session.lagging
        while lagging and session.sent_bytes < session.send_until:
            reader, _ = lagging.popitem(last=False)
            if not self._send_next(reader):
                lagging[reader] = None
            session.shut_at = now
        if not lagging:
            session.shut_at = None

    def drop(self, reader: Reader) -> None:
        """Forget a reader; it is sent nothing more."""
        session = reader.session
        if session.readers.get(reader.rid) is reader:
            del session.readers[reader.rid]
        session.lagging.pop(reader, None)
        reader.is_lagging = False
        reader.journal = reader.ending = None
        self._house.held_bytes -= reader.held_bytes
        reader.held_bytes = 0
        if not session.lagging:
            session.shut_at = None

    def next_unit(self, reader: Reader, request: Request | None) -> int:
        """Return the first unit that a reader has not been sent."""
        journal = reader.journal
        if reader.is_lagging and journal is not None and reader.cursor < journal.end:
            return journal.chunk(reader.cursor)[0]
        return request.next_n if request is not None and request.is_stream else 0

    def _lag(self, reader: Reader, journal: Journal | None, chunk: int, now: float) -> None:
        session = reader.session
        reader.is_lagging = True
        reader.journal = journal
        reader.cursor = chunk
        session.lagging[reader] = None
        if session.is_open and session.shut_at is None:
            session.shut_at = now
            self._house.session_timers.set(session, now + self._house.timing.eviction_s)

    def _keep_for(self, reader: Reader, journal: Journal | None, ending: m.Final | m.Error) -> None:
        """Let a reader outlive its request: what it keeps alive is counted once more, so that it is bounded."""
        reader.ending = ending
        size = journal.size_bytes if journal is not None else 0
        reader.held_bytes = size + (len(ending.body) if type(ending) is m.Final else 0)
        self._house.held_bytes += reader.held_bytes

    def _is_too_slow(self, reader: Reader) -> bool:
        journal = reader.journal
        return journal is not None and journal.bytes_from(reader.cursor) > self._house.bounds.unsent_bytes

    def _send_next(self, reader: Reader) -> bool:
        """Send a lagging reader one thing; True when it lags no more."""
        journal = reader.journal
        if journal is not None and reader.cursor < journal.end:
            seq, n, body = journal.chunk(reader.cursor)
            reader.cursor += 1
            request = reader.request
            self._send_units(reader, m.Partial(reader.rid, seq, n, body), request)
            if reader.cursor < journal.end or reader.ending is not None:
                return False
        if reader.ending is not None:
            self._send_end(reader, reader.ending)
        reader.is_lagging = False
        reader.journal = None
        return True

    # --- sending ---------------------------------------------------------------------------------------------------

    def _send_units(self, reader: Reader, partial: m.Partial, request: Request | None) -> None:
        session = reader.session
        session.sent_bytes += len(partial.body)
        reader.is_heard = True
        if not reader.knows_revision and request is not None and request.revision:
            reader.knows_revision = True
            ext: m.Ext = {"revision": request.revision}
            prompt_tokens = (request.told or {}).get("prompt_tokens")
            if isinstance(prompt_tokens, int):
                ext["prompt_tokens"] = prompt_tokens
            partial = m.Partial(partial.rid, partial.seq, partial.n, partial.body, ext)
        self._house.out.append((CLIENTS, session.peer, partial))

    def _send_end(self, reader: Reader, message: m.Final | m.Error) -> None:
        session = reader.session
        if type(message) is m.Final:
            session.sent_bytes += len(message.body)
        reader.is_heard = True
        self._house.out.append((CLIENTS, session.peer, message))
        self.drop(reader)
