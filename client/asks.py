"""Questions to the broker that wait for their answer. A lost session does not end them: the next one is asked.

A broker that is asked too often says when to ask again; so a loop around `status()` runs at the broker's pace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..protocol import messages as m
from ..protocol import snapshot
from ..protocol.errors import Kind, request_error
from .connection import Link
from .reading import Event
from .requests import Sink
from .timers import Timers

_LATER_S: Final = 0.05
"""If a broker does not say when to ask again."""


class Ask:
    """A question; without a message only a session is wanted. The core's own are answered at once, not by the shell."""

    __slots__ = ("asked_at", "deadline", "is_own", "message", "qid", "sink")

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
        self.message = message
        self.sink = sink
        self.is_own = is_own
        self.asked_at = now
        self.deadline = now + timeout_s


class Asks:
    """Those under way. Equal questions to the broker share one query on the wire, and its answer."""

    def __init__(self, events: list[tuple[Sink, Event]]) -> None:
        self.pending: dict[int, Ask] = {}
        self._events = events
        self._timers: Timers[Ask] = Timers()
        self._again: Timers[Ask] = Timers()
        self._last_qid = 0
        self._sharing: dict[int, list[Ask]] = {}
        """By the number of a query on the wire: who waits for its answer."""
        self._on_wire: dict[tuple[object, ...], int] = {}
        """What such a query asks, and its number."""

    def add(self, ask: Ask, link: Link | None, now: float) -> None:
        """Take a question, and put it at once if there is a session."""
        self._last_qid += 1
        ask.qid = self._last_qid
        self.pending[ask.qid] = ask
        self._timers.add(ask.deadline, ask)
        if link is not None:
            self._put(ask, link, now)

    def welcome(self, link: Link, now: float) -> None:
        """Put all that wait, now that a session is open: what was asked in an earlier one is not answered any more."""
        self._sharing.clear()
        self._on_wire.clear()
        for ask in list(self.pending.values()):
            self._put(ask, link, now)

    def _put(self, ask: Ask, link: Link, now: float) -> None:
        if ask.message is None:
            if link.greeting is not None:
                self.end(ask, link.greeting)
            return
        message = ask.message(ask.qid)
        if isinstance(message, m.Query):
            what = (message.what, *sorted(message.args.items()), message.since)
            qid = self._on_wire.setdefault(what, ask.qid)
            if qid != ask.qid:
                self._sharing[qid].append(ask)
                return
        self._sharing[ask.qid] = [ask]
        link.ask(ask.qid, message, now)

    def answer(self, link: Link, status: m.Status, now: float) -> None:
        """Hand an answer to whoever asked, or put the question again later if the broker wants that."""
        link.asked.discard(status.qid)
        self._is_off_wire(status.qid)
        for ask in self._sharing.pop(status.qid, ()):
            if ask.qid not in self.pending:
                continue
            if status.schema == snapshot.LATER:
                told_ms = status.ext.get("retry_after_ms")
                self._again.add(now + (told_ms / 1000 if isinstance(told_ms, int) else _LATER_S), ask)
            else:
                self.end(ask, status)

    def end(self, ask: Ask, event: Event) -> None:
        """Let a question go, with its answer or with an error."""
        del self.pending[ask.qid]
        if ask.is_own:
            ask.sink.put(event)
        else:
            self._events.append((ask.sink, event))

    def tick(self, link: Link | None, now: float) -> None:
        """Put again what was put off, and end those whose time is up."""
        for ask in self._again.due(now):
            if link is not None and ask.qid in self.pending and not self._waits(ask):
                self._put(ask, link, now)
        for ask in self._timers.due(now):
            if ask.qid in self.pending:
                self._is_off_wire(ask.qid)  # whoever asks next asks anew
                self.end(ask, request_error(Kind.DEADLINE, "the broker did not answer the question in time"))

    def _is_off_wire(self, qid: int) -> None:
        self._on_wire = {what: one for what, one in self._on_wire.items() if one != qid}

    def _waits(self, ask: Ask) -> bool:
        """Whether it was put already, in a session that was opened meanwhile."""
        return any(ask in sharing for sharing in self._sharing.values())

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        return min(self._timers.first(), self._again.first())
