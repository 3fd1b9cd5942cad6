"""The client's record of one request, from the call that made it to its single terminal event.

    WAITING ──► SENT ──► ACKED ──► STREAMING ──► DONE | FAILED | CANCELLED
       ▲          │        │           │
       ├──────────┴────────┴───────────┤   its broker was lost: on to the next one, with what it has
       └── BACKING_OFF ◄───────────────┘   refused for now: sent again when the broker advised

WAITING: in this library, with its time running, because there is no session or no room yet.
SENT: handed to a socket, which proves nothing. ACKED: the broker has it. STREAMING: units arrive. From any state but a
terminal one a request may end. No socket, no clock; seconds come in as `now`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from ..protocol import messages as m
from ..protocol import tasks
from ..protocol.errors import ErrorKind, RequestError, request_error
from ..protocol.limits import MAX_RESUME_BYTES
from ..protocol.names import is_service
from .connection import BrokerConnection, Identity
from .timers import INFINITY

if TYPE_CHECKING:
    from .calls import Call
    from .response import Event


class ClientRequestState(enum.Enum):
    """Where a request is; the module says what each means."""

    __hash__ = object.__hash__  # each is one object; the hash of an Enum is a function in Python, called for each move

    WAITING = "waiting"
    SENT = "sent"
    ACKED = "acked"
    STREAMING = "streaming"
    BACKING_OFF = "backing off"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = ClientRequestState
_ENDS: Final = frozenset({_S.DONE, _S.FAILED, _S.CANCELLED})
_LIVE: Final = frozenset({_S.ACKED, _S.STREAMING, _S.WAITING, _S.BACKING_OFF}) | _ENDS
MOVES: Final[dict[ClientRequestState, frozenset[ClientRequestState]]] = {
    _S.WAITING: frozenset({_S.SENT}) | _ENDS,
    _S.SENT: _LIVE,
    _S.ACKED: _LIVE | {_S.SENT},  # after a gap it is sent anew in the same session
    _S.STREAMING: _LIVE | {_S.SENT},
    _S.BACKING_OFF: frozenset({_S.WAITING}) | _ENDS,
    _S.DONE: frozenset(),
    _S.FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}
MAX_READERS: Final = 8
"""As many as a broker lets wait for one request."""
_blob: Final = msgspec.msgpack.Encoder()


class Sink(Protocol):
    """Where the events of a request go. Called by the client's shell; must not block."""

    def put(self, event: Event) -> bool:
        """Take an event; False = the reader is too far behind."""
        ...


class ClientRequest:
    """The record of one request.

    Attributes:
        expect: Units received so far; the next PARTIAL must begin there.
        home: The broker that was last given it.
        is_stream: Units are delivered as they come.
        service: The one it names, or the one that the broker told with the first units of the stream.
        readers: Where its events go; more than one when the same request was made again meanwhile.
        journal: The units received so far; None when they cannot be given to another broker or reader.
        known_to: The broker that has shown to have it, with all units received so far.
        was_accepted: A broker took it once; a later one that is busy is asked again as long as there is time.
        was_sent: It may have been run (a refusal before the start takes that back).
        deadline: When it has made no progress for its time; moves on with each.
        ends_at: The end of its whole time, if that is bounded.
        resyncs: Gaps in a row with no new unit between them.
    """

    state = ClientRequestState.WAITING
    connection: BrokerConnection | None = None
    home: Identity | None = None
    known_to: Identity | None = None
    was_accepted = False
    was_sent = False
    sent_at = 0.0
    was_resent = False
    expect = 0
    journal_bytes = 0
    refusals = 0
    wake_at = 0.0
    resyncs = 0
    is_resyncing = False

    def __init__(self, call: Call, sink: Sink, now: float) -> None:
        self.call = call
        self.readers = [sink]
        self.service = call.service
        self.submitted_at = now
        self.deadline = now + call.timeout_s
        self.ends_at = now + call.total_s if call.total_s is not None else INFINITY
        self.is_stream = bool(call.flags & m.STREAM)
        self.journal: list[m.Partial] | None = [] if call.flags & m.RESUMABLE else None

    @property
    def due_at(self) -> float:
        """When its time is up: so long after its last progress, or as a whole."""
        return min(self.deadline, self.ends_at)

    def move_on(self, now: float) -> None:
        """Count its time without progress from here on."""
        self.deadline = max(self.deadline, now + self.call.timeout_s)

    def learn_service(self, ext: m.Ext) -> None:
        """Keep the service that the broker chose: what has begun goes on with the same model, wherever it is sent."""
        service = ext.get("service")
        if not self.service and isinstance(service, str) and is_service(service):
            self.service = service

    def move(self, state: ClientRequestState) -> None:
        """Change state; an illegal move is a fault of this library."""
        if state not in MOVES[self.state]:
            raise RuntimeError(f"request {self.call.request_id} cannot go from {self.state} to {state}")
        self.state = state

    # --- at a broker

    def send(self, connection: BrokerConnection, now: float) -> None:
        """Give it to a broker, for the first time or again."""
        message = self._message(now, connection.identity)
        if self.state is not ClientRequestState.SENT:
            self.move(ClientRequestState.SENT)
        connection.send(message, now)
        self.connection = connection
        self.home = connection.identity
        self.was_sent = True
        self.sent_at = now

    def acknowledge(self, connection: BrokerConnection, *, streaming: bool = False) -> None:
        """Note that the broker has it; any answer proves that."""
        if self.state is ClientRequestState.STREAMING and streaming and self.known_to is connection.identity:
            self.is_resyncing = False  # as it was with the unit before
            return
        connection.unacked.pop(self.call.rid, None)
        self.known_to = connection.identity
        self.was_accepted = True
        if streaming:
            self.is_resyncing = False
            if self.state is not ClientRequestState.STREAMING:
                self.move(ClientRequestState.STREAMING)
        elif self.state is ClientRequestState.SENT:
            self.move(ClientRequestState.ACKED)

    def leave(self) -> None:
        """Be with no broker any more."""
        if self.connection is not None:
            self.connection.drop(self.call.rid)
            self.connection = None

    def cancel(self, reason: str) -> None:
        """Have the broker give it up, if one has it."""
        if self.connection is not None:
            self.connection.cancel(self.call.rid, reason)
            self.connection = None

    def _message(self, now: float, home: Identity) -> m.Request:
        """Build the REQUEST for a broker. One that may not know it gets the units received so far along with it."""
        call, flags = self.call, self.call.flags
        resume = b""
        if self.expect and self.known_to != home:
            flags |= m.RESUME
            resume = _blob.encode([partial.body for partial in self.journal or ()])
        ext = call.ext
        if self.ends_at != INFINITY:
            ext = {**ext, "total_ms": max(1, int((self.ends_at - now) * 1000))}
        return m.Request(
            call.rid,
            self.service if self.expect else call.service,
            max(1, int(call.timeout_s * 1000)),
            flags,
            call.priority,
            self.expect,
            call.cost,
            call.body,
            resume,
            ext,
        )

    def obstacle(self, home: Identity, now: float, dedupe_s: float) -> RequestError | None:
        """Say why it must not be given to this broker (again); None when it may."""
        if not self.was_sent or (self.home == home and now - self.sent_at <= dedupe_s):
            return None  # a broker that remembers it attaches instead of running it twice
        if not self.call.flags & m.IDEMPOTENT:
            text = "the broker was lost after the request was sent, and it must not run twice: its outcome is unknown"
            return self.error(ErrorKind.OUTCOME_UNKNOWN, text)
        if self.expect and self.journal is None:
            text = f"the broker was lost after {self.expect} units, and this stream cannot go on elsewhere"
            return self.error(ErrorKind.NOT_RESUMABLE, text)
        return None

    def is_duplicate_of(self, other: ClientRequest) -> bool:
        """Say whether another request of the same id asks for the very same."""
        mine, its = self.call, other.call
        same = (mine.body, mine.flags, mine.service) == (its.body, its.flags, its.service)
        return same and (self.journal is not None or not self.expect) and len(self.readers) < MAX_READERS

    def refused(self) -> bool:
        """Note that the broker let it go; say whether it may be sent again."""
        self.home = self.known_to = None
        if not self.expect:
            self.was_sent = False  # it never ran
            return True
        return self.journal is not None and bool(self.call.flags & m.IDEMPOTENT)

    def take(self, partial: m.Partial, now: float) -> m.Partial | None:
        """Take the next units; None when there is nothing new among them.

        The caller has looked for a gap. Units that are here already are trimmed off.
        """
        if partial.seq < self.expect:
            if partial.seq + partial.n <= self.expect:
                return None
            partial = trimmed(partial, self.expect - partial.seq)
        self.expect = partial.seq + partial.n
        self.move_on(now)
        self.resyncs = 0
        if self.journal is not None:
            self.journal_bytes += len(partial.body)
            self.journal.append(partial)
            if self.journal_bytes > MAX_RESUME_BYTES:
                self.journal = None  # no broker would take it back
        return partial

    def error(self, kind: ErrorKind, text: str, *, retry_after_s: float = 0.0) -> RequestError:
        """Build the exception that ends this request."""
        return request_error(
            kind, text, request_id=self.call.request_id, retry_after_s=retry_after_s, resume_n=self.expect
        )


def trimmed(partial: m.Partial, skip: int) -> m.Partial:
    """Drop the first units of a PARTIAL. Raises RequestError when its body is not a chunk."""
    chunk = tasks.decode_answer(partial.body, tasks.GenerateChunk)
    logprobs = chunk.logprobs[skip:] if chunk.logprobs is not None else None
    rest = tasks.GenerateChunk(ids=chunk.ids[skip:], text=chunk.text[skip:], logprobs=logprobs)
    return m.Partial(partial.rid, partial.seq + skip, partial.n - skip, tasks.encode(rest), partial.ext)
