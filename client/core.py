"""The client's decisions: which broker, which request goes out when, what a loss means, when to give up.

Messages, failures and wishes come in with `now`; what to do comes out: `take_actions` for sockets, `take_events` for
whoever waits, and each link's `outbox`. No socket, clock, thread or chance of its own, so every fault can be tried in a
test. The parts: `book` the requests, `sessions` the brokers, `replies` what is answered, `asks` and `naming` questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, assert_never

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, ZmqrtError, clip, request_error
from ..protocol.failure import Failure
from .asks import Ask, Asks
from .book import Book
from .connection import Link, LinkState
from .naming import Naming
from .reading import Event
from .replies import Replies
from .requests import Request, Sink
from .sessions import Action, Sessions

if TYPE_CHECKING:
    import random

    from .config import ClientConfig

_JUDGE_EVERY_S: Final = 0.1
_CLOSED: Final = "the client was closed before the answer came"
_SLOW: Final = "its reader is too slow: more than 1 MiB of the stream lay unread, so this stream alone was cancelled"


class ClientCore:
    """One client, whatever the number of threads and tasks that use it."""

    def __init__(self, config: ClientConfig, client_uuid: bytes, rng: random.Random) -> None:
        self.book = Book(config.max_waiting)
        self.sessions = Sessions(config, client_uuid, self.book, rng)
        self._asks = Asks(self.book.events)
        self._naming = Naming(self.book, self._asks, config.default_model, rng)
        self._replies = Replies(self.book, self.sessions, self._naming, rng)
        self._judged_at = 0.0
        self._is_closed = False

    # --- wishes of the faces

    def start(self, now: float) -> None:
        """Begin to connect."""
        self.sessions.start(now)

    def submit(self, request: Request, now: float) -> None:
        """Take a request; its events will follow."""
        if self._is_closed:
            self.book.events.append((request.readers[0], request.error(ErrorKind.CANCELLED, _CLOSED)))
        elif self.book.admit(request):
            self.book.enqueue(request)
            self.sessions.hurry(now)
            self._pump(now)

    def cancel(
        self,
        rid: bytes,
        now: float,
        *,
        reader: Sink | None = None,
        kind: ErrorKind = ErrorKind.CANCELLED,
        text: str = "cancelled here",
    ) -> None:
        """Give a request up, or only one of its readers; nothing happens if it has ended."""
        request = self.book.live.get(rid)
        if request is None or self.book.part(request, reader, kind, text):
            return
        if request.link is not None:
            request.link.cancel(request, clip(text))
        self.book.cancel(request, kind, text)
        self._pump(now)

    def overflowed(self, rid: bytes, now: float, reader: Sink | None = None) -> None:
        """Give a stream up whose reader is too far behind; the others do not wait for it."""
        self.cancel(rid, now, reader=reader, kind=ErrorKind.SLOW_READER, text=_SLOW)

    def ask(self, ask: Ask, now: float) -> None:
        """Put a question; its answer will follow."""
        self._asks.add(ask, self.sessions.current, now)
        if self._is_closed:
            self._asks.end(ask, request_error(ErrorKind.CANCELLED, _CLOSED))
        self.sessions.hurry(now)

    def close(self) -> None:
        """End: everything under way is cancelled."""
        self._is_closed = True
        for request in list(self.book.live.values()):
            self.book.cancel(request, ErrorKind.CANCELLED, _CLOSED)
        for ask in list(self._asks.pending.values()):
            self._asks.end(ask, request_error(ErrorKind.CANCELLED, _CLOSED))
        self.sessions.close()

    # --- what the shell carries out

    def take_events(self) -> list[tuple[Sink, Event]]:
        """Hand over what happened since the last call."""
        events = self.book.events[:]
        self.book.events.clear()
        return events

    @property
    def has_news(self) -> bool:
        """Whether there is something to hand over."""
        return bool(self.book.events or self.sessions.actions)

    def take_actions(self) -> list[Action]:
        """Hand over what is to be done with sockets."""
        actions = self.sessions.actions[:]
        self.sessions.actions.clear()
        return actions

    # --- news from the shell

    def link_ready(self, link: Link, now: float) -> None:
        """Greet, now that the ZMTP handshake is done."""
        self.sessions.greet(link, now)

    def link_failed(self, link: Link, failure: Failure | None, now: float) -> None:
        """Give up a connection that is gone, or never came to be; None = the cause is not known yet."""
        self.sessions.lose(link, failure, now)
        self._naming.forget()
        self._judge(now)

    def unsendable(self, link: Link, message: m.FromClient, why: Exception, now: float) -> None:
        """End what a message that cannot be packed belongs to, and nothing else."""
        text = f"this request cannot be sent: {why}"
        match message:
            case m.Request(rid=rid):
                request = link.requests.get(rid)
                if request is not None:
                    self.book.fail(request, request.error(ErrorKind.BAD_REQUEST, text))
            case m.Query(qid=qid) | m.Admin(qid=qid):
                self._asks.refuse(link, qid, request_error(ErrorKind.BAD_REQUEST, text))
            case m.Hello():
                self.sessions.lose(link, Failure(f"{link.endpoint}: no session can be opened: {why}", True), now)
            case _:
                pass  # nobody waits for an answer to it

    def explained(self, endpoint: str, failure: Failure, now: float) -> None:
        """Take the result of a diagnosis."""
        self.sessions.explained(endpoint, failure)
        self._judge(now)

    def received(self, link: Link, messages: Sequence[m.ToClient], now: float) -> None:
        """Take what a broker sent."""
        link.hear(now)
        for message in messages:
            self._take(link, message, now)
            if link.state is LinkState.DEAD:
                self._judge(now)
                return
        self._pump(now)
        self.sessions.shut_if_done(link)

    def _take(self, link: Link, message: m.ToClient, now: float) -> None:
        match message:
            case m.Partial():
                self._replies.partial(link, message, now)
            case m.Final():
                self._replies.final(link, message, now)
            case m.Accepted():
                self._replies.accepted(link, message, now)
            case m.Error():
                self._replies.error(link, message, now)
            case _:
                self._take_of_session(link, message, now)

    def _take_of_session(self, link: Link, message: m.Pong | m.Status | m.Welcome | m.Goaway, now: float) -> None:
        match message:
            case m.Pong():
                self._replies.pong(link, message, now)
            case m.Status():
                self._asks.answer(link, message, now)
            case m.Welcome():
                if self.sessions.welcome(link, message, now):
                    self._asks.welcome(link, now)
            case m.Goaway():
                self.sessions.leave(link, now + message.deadline_ms / 1000, now)
            case _:
                assert_never(message)

    # --- time

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        due = min(self.sessions.next_deadline(), self.book.next_deadline(), self._asks.next_deadline())
        if self.sessions.current is None and (self.book.line or self.book.unnamed or self._asks.pending):
            due = min(due, self._judged_at + _JUDGE_EVERY_S)
        return due

    def tick(self, now: float) -> None:
        """Do what is due. Sockets must have been read first: what lies there unread is no silence."""
        self.sessions.tick(now)
        self.book.wake(now)
        for request in self.book.expired(now):
            self._expire(request, now)
        self._asks.tick(self.sessions.current, now, self.sessions.unanswered)
        self._judge(now)
        self._pump(now)

    def _expire(self, request: Request, now: float) -> None:
        is_over = now >= request.ends_at
        seconds = f"{request.call.total_s if is_over else request.call.timeout_s:g} s"
        error: ZmqrtError
        if request.link is not None:
            error = request.error(*_why_late(request, seconds, is_over=is_over))
            request.link.cancel(request, "its time is up")
        elif self.sessions.current is not None:
            error = request.error(
                ErrorKind.DEADLINE, f"waited {seconds} in this client for its turn; send fewer at a time"
            )
        elif request.was_sent:
            error = request.error(ErrorKind.BROKER_LOST, f"no broker could be reached again within {seconds}")
        else:
            error = self.sessions.unreachable(now - request.submitted_at)
        self.book.fail(request, error)

    def _judge(self, now: float) -> None:
        """Tell those who were never sent what is in the way, once that is certain or they have waited enough."""
        self._judged_at = now
        if self.sessions.current is not None:
            return
        patience_s, down_since = self.sessions.patience_s, self.sessions.down_since
        for request in [*self.book.line.values(), *self.book.unnamed.values()]:
            waited_s = now - max(request.submitted_at, down_since)
            if not request.was_sent and waited_s >= patience_s:
                self.book.fail(request, self.sessions.unreachable(waited_s))
        for ask in list(self._asks.pending.values()):
            waited_s = now - max(ask.asked_at, down_since)
            if waited_s >= patience_s:
                self._asks.end(ask, self.sessions.unreachable(waited_s))

    def _pump(self, now: float) -> None:
        """Send what may be sent: never more than the broker allows."""
        link = self.sessions.current
        if self.book.unnamed:
            self._naming.name(link, now)
        if link is None:
            return
        line = self.book.line
        while line and link.has_room:
            _, request = line.popitem(last=False)
            obstacle = request.obstacle(link.identity, now, link.timing.dedupe_s)
            if obstacle is None:
                self.book.take_turn(request)
                self._send(request, link, now)
            else:
                self.book.fail(request, obstacle)

    def _send(self, request: Request, link: Link, now: float) -> None:
        try:
            link.add(request, now)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a fault in one is no fault in all
            self.book.fail(request, request.error(ErrorKind.BAD_REQUEST, f"this request cannot be sent: {error}"))


def _why_late(request: Request, seconds: str, *, is_over: bool) -> tuple[ErrorKind, str]:
    assert request.link is not None
    where = f"from {request.service} through {request.link.endpoint}"
    if is_over:
        return ErrorKind.DEADLINE, f"not done within {seconds} in all, {where}"
    if request.expect:
        return ErrorKind.STALLED, f"no new token for {seconds} {where}"
    return ErrorKind.DEADLINE, f"no answer within {seconds} {where}"
