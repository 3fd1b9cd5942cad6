"""Queries about the broker itself (QUERY, ADMIN): what is asked, who waits for the answer, and how it is read.

A lost session ends no query: the next one is asked. A broker that is asked too often says when to ask again, so a loop
around `status()` runs at the broker's pace. No socket, no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from ..protocol import admin as administration
from ..protocol import messages as m
from ..protocol import request_trace
from ..protocol import snapshot as snapshots
from ..protocol.admin import AdminOutcome
from ..protocol.errors import ErrorKind, ProtocolError, ZmqrtError, request_error
from ..protocol.limits import MAX_EXT_VALUE_CHARS
from ..protocol.request_trace import RequestTrace
from ..protocol.snapshot import ServiceStatus, Snapshot
from . import arguments
from .connection import BrokerConnection
from .requests import Sink
from .response import Event
from .timers import Timers

A = TypeVar("A")
Answer = m.Welcome | m.Status
_services: Final = msgspec.msgpack.Decoder(list[ServiceStatus])
_LATER_S: Final = 0.05
"""If a broker does not say when to ask again."""


@dataclass(frozen=True, slots=True)
class QuerySpec(Generic[A]):
    """What to send (nothing at all: only a session is wanted), and what the answer means."""

    message: Callable[[int], m.Query | m.Admin] | None
    read: Callable[[Answer], A]


def connection() -> QuerySpec[m.Welcome]:
    """Wait for a session."""
    return QuerySpec(None, _read_welcome)


def status() -> QuerySpec[Snapshot]:
    """Ask for the whole state."""
    return QuerySpec(lambda qid: m.Query(qid, "status"), _read_snapshot)


def explain(name: str) -> QuerySpec[list[RequestTrace]]:
    """Ask what happened to a request, by its rid in hex or by the name its client gave it."""
    asked = arguments.text("request", name, most=MAX_EXT_VALUE_CHARS)
    return QuerySpec(lambda qid: m.Query(qid, "explain", {"request": asked}), _read_traces)


def services() -> QuerySpec[list[ServiceStatus]]:
    """Ask which services there are."""
    return QuerySpec(lambda qid: m.Query(qid, "services"), _read_services)


def drain(node_id: str) -> QuerySpec[AdminOutcome]:
    """Ask for a node to be drained; for admins alone."""
    node = arguments.text("node_id", node_id, most=MAX_EXT_VALUE_CHARS)
    return QuerySpec(lambda qid: m.Admin(qid, "drain", {"node": node}), _read_outcome)


# --- how answers are read


def _read_welcome(answer: Answer) -> m.Welcome:
    assert isinstance(answer, m.Welcome)
    return answer


def _read_status(answer: Answer) -> m.Status:
    assert isinstance(answer, m.Status)
    if answer.schema == snapshots.TOO_LARGE:
        raise request_error(
            ErrorKind.TOO_LARGE, str(answer.ext.get("text") or "the broker's answer does not fit a frame")
        )
    return answer


def _read_outcome(answer: Answer) -> AdminOutcome:
    """Read what was done. Raises RequestError where it was not."""
    outcome = _decode(administration.decode, answer)
    refusal = outcome.error()
    if refusal is not None:
        raise refusal
    return outcome


def _read_snapshot(answer: Answer) -> Snapshot:
    return _decode(snapshots.decode, answer)


def _read_traces(answer: Answer) -> list[RequestTrace]:
    if _read_status(answer).schema != request_trace.SCHEMA:
        raise ProtocolError("this broker is too old to explain requests; update it")
    return _decode(request_trace.decode, answer)


def _read_services(answer: Answer) -> list[ServiceStatus]:
    """Read the list alone or out of a whole snapshot."""
    if _read_status(answer).schema == snapshots.SCHEMA:
        return _read_snapshot(answer).services
    return _decode(_services.decode, answer)


def _decode(decode: Callable[[bytes], A], answer: Answer) -> A:
    try:
        return decode(_read_status(answer).body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the broker's answer cannot be read; do both sides have one version? ({error})") from None


# --- who waits for them


class PendingQuery:
    """A query whose answer somebody waits for; without a message only a session is wanted."""

    __slots__ = ("asked_at", "deadline", "message", "qid", "sink", "wire_qid")

    def __init__(
        self, message: Callable[[int], m.Query | m.Admin] | None, sink: Sink, now: float, timeout_s: float
    ) -> None:
        self.qid = 0
        self.wire_qid = 0
        """The number of the query on the wire that asks for it; 0 = none does now."""
        self.message = message
        self.sink = sink
        self.asked_at = now
        self.deadline = now + timeout_s


class QueryTable:
    """The queries under way. Equal ones share one on the wire, and its answer. `events` is emptied by the shell."""

    def __init__(self, events: list[tuple[Sink, Event]]) -> None:
        self.pending: dict[int, PendingQuery] = {}
        self._events = events
        self._timers: Timers[PendingQuery] = Timers()
        self._again: Timers[PendingQuery] = Timers()
        self._last_qid = 0
        self._sharing: dict[int, list[PendingQuery]] = {}
        """By the number of a query on the wire: who waits for its answer."""
        self._on_wire: dict[tuple[object, ...], int] = {}
        """What such a query asks, and its number."""

    def add(self, query: PendingQuery, connection: BrokerConnection | None, now: float) -> None:
        """Take a query, and put it at once if there is a session."""
        self._last_qid += 1
        query.qid = self._last_qid
        self.pending[query.qid] = query
        self._timers.add(query.deadline, query)
        if connection is not None:
            self._put(query, connection, now)

    def welcome(self, connection: BrokerConnection, now: float) -> None:
        """Put all that wait, now that a session is open: what was asked in an earlier one is not answered any more."""
        self._sharing.clear()
        self._on_wire.clear()
        for query in self.pending.values():
            query.wire_qid = 0
        for query in list(self.pending.values()):
            self._put(query, connection, now)

    def _put(self, query: PendingQuery, connection: BrokerConnection, now: float) -> None:
        if query.message is None:
            if connection.greeting is not None:
                self.end(query, connection.greeting)
            return
        message = query.message(query.qid)
        if isinstance(message, m.Query):
            what = (message.what, *sorted(message.args.items()))
            query.wire_qid = self._on_wire.setdefault(what, query.qid)
            if query.wire_qid != query.qid:
                self._sharing[query.wire_qid].append(query)
                return
        query.wire_qid = query.qid
        self._sharing[query.qid] = [query]
        connection.ask(query.qid, message, now)

    def answer(self, connection: BrokerConnection, status: m.Status, now: float) -> None:
        """Hand an answer to whoever asked, or put the query again later if the broker wants that."""
        connection.asked.discard(status.qid)
        self._is_off_wire(status.qid)
        for query in self._sharing.pop(status.qid, ()):
            query.wire_qid = 0
            if status.schema == snapshots.LATER:
                retry_after_ms = status.ext.get("retry_after_ms")
                self._again.add(now + (retry_after_ms / 1000 if isinstance(retry_after_ms, int) else _LATER_S), query)
            else:
                self.end(query, status)

    def refuse(self, connection: BrokerConnection, qid: int, error: ZmqrtError) -> None:
        """End all who wait for the answer to a query that cannot be sent."""
        connection.asked.discard(qid)
        for query in list(self._sharing.get(qid, ())):
            self.end(query, error)

    def end(self, query: PendingQuery, event: Event) -> None:
        """Let a query go, with its answer or with an error."""
        del self.pending[query.qid]
        self._timers.drop(query)
        self._again.drop(query)
        self._leave(query)
        self._events.append((query.sink, event))

    def tick(self, connection: BrokerConnection | None, now: float, overdue: Callable[[], ZmqrtError]) -> None:
        """Put again what was put off, and end those whose time is up."""
        for query in self._again.due(now):
            if connection is not None and not query.wire_qid:  # else it was put in a session that was opened meanwhile
                self._put(query, connection, now)
        for query in self._timers.due(now):
            self._is_off_wire(query.wire_qid)  # whoever asks next asks anew
            if connection is not None and len(self._sharing.get(query.wire_qid, ())) == 1:
                connection.asked.discard(query.wire_qid)  # nobody waits for it any more
            self.end(query, overdue())

    def _is_off_wire(self, qid: int) -> None:
        self._on_wire = {what: known for what, known in self._on_wire.items() if known != qid}

    def _leave(self, query: PendingQuery) -> None:
        """Wait no longer for the answer that it shares with others; the last one leaves no trace of the query."""
        sharing = self._sharing.get(query.wire_qid)
        if sharing is not None:
            sharing.remove(query)
            if not sharing:
                del self._sharing[query.wire_qid]
                self._is_off_wire(query.wire_qid)

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        return min(self._timers.first(), self._again.first())
