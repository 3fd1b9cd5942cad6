"""Questions to the broker that wait for their answer. A lost session does not end them: the next one is asked.

A broker that is asked too often says when to ask again; so a loop around `status()` runs at the broker's pace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..protocol import messages as m
from ..protocol import snapshot
from ..protocol.errors import ZmqrtError
from .connection import BrokerConnection
from .reading import Event
from .requests import Sink
from .timers import Timers

_LATER_S: Final = 0.05
"""If a broker does not say when to ask again."""


class PendingQuery:
    """A question; without a message only a session is wanted. The core's own are answered at once, not by the shell."""

    __slots__ = ("asked_at", "deadline", "is_own", "message", "qid", "sink", "wire_qid")

    def __init__(
        self,
        message: Callable[[int], m.Query | m.Admin] | None,
        sink: Sink,
        now: float,
        timeout_s: float,
        *,
        is_own: bool = False,
    ) -> None:
        self.qid = 0
        self.wire_qid = 0
        """The number of the query on the wire that asks for it; 0 = none does now."""
        self.message = message
        self.sink = sink
        self.is_own = is_own
        self.asked_at = now
        self.deadline = now + timeout_s


class PendingQueries:
    """Those under way. Equal questions to the broker share one query on the wire, and its answer."""

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

    def add(self, ask: PendingQuery, connection: BrokerConnection | None, now: float) -> None:
        """Take a question, and put it at once if there is a session."""
        self._last_qid += 1
        ask.qid = self._last_qid
        self.pending[ask.qid] = ask
        self._timers.add(ask.deadline, ask)
        if connection is not None:
            self._put(ask, connection, now)

    def welcome(self, connection: BrokerConnection, now: float) -> None:
        """Put all that wait, now that a session is open: what was asked in an earlier one is not answered any more."""
        self._sharing.clear()
        self._on_wire.clear()
        for ask in self.pending.values():
            ask.wire_qid = 0
        for ask in list(self.pending.values()):
            self._put(ask, connection, now)

    def _put(self, ask: PendingQuery, connection: BrokerConnection, now: float) -> None:
        if ask.message is None:
            if connection.greeting is not None:
                self.end(ask, connection.greeting)
            return
        message = ask.message(ask.qid)
        if isinstance(message, m.Query):
            what = (message.what, *sorted(message.args.items()))
            ask.wire_qid = self._on_wire.setdefault(what, ask.qid)
            if ask.wire_qid != ask.qid:
                self._sharing[ask.wire_qid].append(ask)
                return
        ask.wire_qid = ask.qid
        self._sharing[ask.qid] = [ask]
        connection.ask(ask.qid, message, now)

    def answer(self, connection: BrokerConnection, status: m.Status, now: float) -> None:
        """Hand an answer to whoever asked, or put the question again later if the broker wants that."""
        connection.asked.discard(status.qid)
        self._is_off_wire(status.qid)
        for ask in self._sharing.pop(status.qid, ()):
            ask.wire_qid = 0
            if status.schema == snapshot.LATER:
                told_ms = status.ext.get("retry_after_ms")
                self._again.add(now + (told_ms / 1000 if isinstance(told_ms, int) else _LATER_S), ask)
            else:
                self.end(ask, status)

    def refuse(self, connection: BrokerConnection, qid: int, error: ZmqrtError) -> None:
        """End all who wait for the answer to a query that cannot be sent."""
        connection.asked.discard(qid)
        for ask in list(self._sharing.get(qid, ())):
            self.end(ask, error)

    def end(self, ask: PendingQuery, event: Event) -> None:
        """Let a question go, with its answer or with an error."""
        del self.pending[ask.qid]
        self._timers.drop(ask)
        self._again.drop(ask)
        self._leave(ask)
        if ask.is_own:
            ask.sink.put(event)
        else:
            self._events.append((ask.sink, event))

    def tick(self, connection: BrokerConnection | None, now: float, overdue: Callable[[], ZmqrtError]) -> None:
        """Put again what was put off, and end those whose time is up."""
        for ask in self._again.due(now):
            if connection is not None and not ask.wire_qid:  # else it was put in a session that was opened meanwhile
                self._put(ask, connection, now)
        for ask in self._timers.due(now):
            self._is_off_wire(ask.wire_qid)  # whoever asks next asks anew
            if connection is not None and len(self._sharing.get(ask.wire_qid, ())) == 1:
                connection.asked.discard(ask.wire_qid)  # nobody waits for it any more
            self.end(ask, overdue())

    def _is_off_wire(self, qid: int) -> None:
        self._on_wire = {what: one for what, one in self._on_wire.items() if one != qid}

    def _leave(self, ask: PendingQuery) -> None:
        """Wait no longer for the answer that it shares with others; the last one leaves no trace of the query."""
        sharing = self._sharing.get(ask.wire_qid)
        if sharing is not None:
            sharing.remove(ask)
            if not sharing:
                del self._sharing[ask.wire_qid]
                self._is_off_wire(ask.wire_qid)

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        return min(self._timers.first(), self._again.first())
