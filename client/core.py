"""The client's decisions: which broker is used, when a request is sent, what a loss means, when to give up.

Messages, failures and calls come in with `now`; what to do comes out: `take_actions` for sockets, `take_events` for
whoever waits, and each connection's `outbox`. No socket, clock, thread or chance of its own, so every fault can be
tried in a test. The parts: `table` has the requests, `connections` the brokers, `replies` reads what they answer, and
`queries` holds what was asked about the broker itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, assert_never

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, ZmqrtError, clip, request_error
from ..protocol.failure import Failure
from .connection import BrokerConnection, ConnectionState
from .failover import Connections, SocketAction
from .queries import PendingQuery, QueryTable
from .replies import Replies
from .request_table import RequestTable
from .requests import ClientRequest, Sink
from .response import Event

if TYPE_CHECKING:
    import random

    from .config import ClientConfig

_LOOK_EVERY_S: Final = 0.1
_CLOSED: Final = "the client was closed before the answer came"
_SLOW: Final = "its reader is too slow: more than 1 MiB of the stream lay unread, so this stream alone was cancelled"


class ClientCore:
    """One client, whatever the number of threads and tasks that use it."""

    def __init__(self, config: ClientConfig, client_uuid: bytes, rng: random.Random) -> None:
        self.table = RequestTable(config.max_waiting)
        self.connections = Connections(config, client_uuid, self.table, rng)
        self._queries = QueryTable(self.table.events)
        self._replies = Replies(self.table, self.connections, rng)
        self._looked_at = 0.0
        self._is_closed = False

    # --- calls of the application

    def start(self, now: float) -> None:
        """Begin to connect."""
        self.connections.start(now)

    def submit(self, request: ClientRequest, now: float) -> None:
        """Take a request; its events will follow."""
        if self._is_closed:
            self.table.events.append((request.readers[0], request.error(ErrorKind.CANCELLED, _CLOSED)))
        elif self.table.admit(request):
            self.table.enqueue(request)
            self.connections.retry_soon(now)
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
        request = self.table.live.get(rid)
        if request is None or self.table.detach(request, reader, kind, text):
            return
        request.cancel(clip(text))
        self.table.cancel(request, kind, text)
        self._pump(now)

    def overflowed(self, rid: bytes, now: float, reader: Sink | None = None) -> None:
        """Give a stream up whose reader is too far behind; the others do not wait for it."""
        self.cancel(rid, now, reader=reader, kind=ErrorKind.SLOW_READER, text=_SLOW)

    def ask(self, query: PendingQuery, now: float) -> None:
        """Put a query; its answer will follow."""
        self._queries.add(query, self.connections.current, now)
        if self._is_closed:
            self._queries.end(query, request_error(ErrorKind.CANCELLED, _CLOSED))
        self.connections.retry_soon(now)

    def close(self) -> None:
        """End: everything under way is cancelled."""
        self._is_closed = True
        for request in list(self.table.live.values()):
            self.table.cancel(request, ErrorKind.CANCELLED, _CLOSED)
        for query in list(self._queries.pending.values()):
            self._queries.end(query, request_error(ErrorKind.CANCELLED, _CLOSED))
        self.connections.close()

    # --- what the shell carries out

    def take_events(self) -> list[tuple[Sink, Event]]:
        """Hand over what happened since the last call."""
        events = self.table.events[:]
        self.table.events.clear()
        return events

    @property
    def has_output(self) -> bool:
        """Whether there is something to hand over."""
        return bool(self.table.events or self.connections.actions)

    def take_actions(self) -> list[SocketAction]:
        """Hand over what is to be done with sockets."""
        actions = self.connections.actions[:]
        self.connections.actions.clear()
        return actions

    # --- what the shell reports

    def connection_ready(self, connection: BrokerConnection, now: float) -> None:
        """Greet, now that the ZMTP handshake is done."""
        self.connections.greet(connection, now)

    def connection_failed(self, connection: BrokerConnection, failure: Failure | None, now: float) -> None:
        """Give up a connection that is gone, or never came to be; None = the cause is not known yet."""
        self.connections.lose(connection, failure, now)
        self._fail_expired(now)
        self._pump(now)  # a broker that leaves may be gone before its requests are done: the next one may be up already

    def unsendable(self, connection: BrokerConnection, message: m.FromClient, why: Exception, now: float) -> None:
        """End what a message that cannot be packed belongs to, and nothing else."""
        text = f"this request cannot be sent: {why}"
        match message:
            case m.Request(rid=rid):
                request = self.table.at(connection, rid)
                if request is not None:
                    self.table.fail(request, request.error(ErrorKind.BAD_REQUEST, text))
            case m.Query(qid=qid) | m.Admin(qid=qid):
                self._queries.refuse(connection, qid, request_error(ErrorKind.BAD_REQUEST, text))
            case m.Hello():
                self.connections.lose(
                    connection, Failure(f"{connection.endpoint}: no session can be opened: {why}", True), now
                )
            case _:
                pass  # nobody waits for an answer to it

    def explained(self, endpoint: str, failure: Failure, now: float) -> None:
        """Take the result of a diagnosis."""
        self.connections.explained(endpoint, failure)
        self._fail_expired(now)

    def received(self, connection: BrokerConnection, messages: Sequence[m.ToClient], now: float) -> None:
        """Take what a broker sent."""
        connection.note_received(now)
        for message in messages:
            self._take(connection, message, now)
            if connection.state is ConnectionState.DEAD:
                self._fail_expired(now)
                self._pump(now)
                return
        self._pump(now)
        self.connections.shut_if_done(connection)

    def _take(self, connection: BrokerConnection, message: m.ToClient, now: float) -> None:
        match message:
            case m.Partial():
                self._replies.partial(connection, message, now)
            case m.Final():
                self._replies.final(connection, message, now)
            case m.Accepted():
                self._replies.accepted(connection, message, now)
            case m.Error():
                self._replies.error(connection, message, now)
            case _:
                self._take_of_session(connection, message, now)

    def _take_of_session(
        self, connection: BrokerConnection, message: m.Pong | m.Status | m.Welcome | m.Goaway, now: float
    ) -> None:
        match message:
            case m.Pong():
                self._replies.pong(connection, message, now)
            case m.Status():
                self._queries.answer(connection, message, now)
            case m.Welcome():
                if self.connections.welcome(connection, message, now):
                    self._queries.welcome(connection, now)
            case m.Goaway():
                self.connections.leave(connection, now + message.deadline_ms / 1000, now)
            case _:
                assert_never(message)

    # --- time

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        due = min(self.connections.next_deadline(), self.table.next_deadline(), self._queries.next_deadline())
        if self.connections.current is None and (self.table.queue or self._queries.pending):
            due = min(due, self._looked_at + _LOOK_EVERY_S)
        return due

    def tick(self, now: float) -> None:
        """Do what is due. Sockets must have been read first: what lies there unread is no silence."""
        self.connections.tick(now)
        self.table.wake(now)
        for request in self.table.expired(now):
            self._expire(request, now)
        self._queries.tick(self.connections.current, now, self.connections.unanswered)
        self._fail_expired(now)
        self._pump(now)

    def _expire(self, request: ClientRequest, now: float) -> None:
        is_over = now >= request.ends_at
        seconds = f"{request.call.total_s if is_over else request.call.timeout_s:g} s"
        error: ZmqrtError
        if request.connection is not None:
            error = request.error(*_why_late(request, seconds, is_over=is_over))
            request.cancel("its time is up")
        elif self.connections.current is not None:
            error = request.error(
                ErrorKind.DEADLINE, f"waited {seconds} in this client for its turn; send fewer at a time"
            )
        elif request.was_sent:
            error = request.error(ErrorKind.BROKER_LOST, f"no broker could be reached again within {seconds}")
        else:
            error = self.connections.unreachable(now - request.submitted_at)
        self.table.fail(request, error)

    def _fail_expired(self, now: float) -> None:
        """Tell those who were never sent what is in the way, once that is certain or they have waited enough."""
        self._looked_at = now
        if self.connections.current is not None:
            return
        patience_s, down_since = self.connections.patience_s, self.connections.down_since
        for request in list(self.table.queue.values()):
            waited_s = now - max(request.submitted_at, down_since)
            if not request.was_sent and waited_s >= patience_s:
                self.table.fail(request, self.connections.unreachable(waited_s))
        for query in list(self._queries.pending.values()):
            waited_s = now - max(query.asked_at, down_since)
            if waited_s >= patience_s:
                self._queries.end(query, self.connections.unreachable(waited_s))

    def _pump(self, now: float) -> None:
        """Send what may be sent: never more than the broker allows."""
        connection = self.connections.current
        if connection is None:
            return
        queue = self.table.queue
        while queue and connection.has_room:
            _, request = queue.popitem(last=False)
            obstacle = request.obstacle(connection.identity, now, connection.timing.dedupe_s)
            if obstacle is None:
                self.table.take_turn(request)
                self._send(request, connection, now)
            else:
                self.table.fail(request, obstacle)

    def _send(self, request: ClientRequest, connection: BrokerConnection, now: float) -> None:
        try:
            request.send(connection, now)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a fault in one is no fault in all
            self.table.fail(request, request.error(ErrorKind.BAD_REQUEST, f"this request cannot be sent: {error}"))


def _why_late(request: ClientRequest, seconds: str, *, is_over: bool) -> tuple[ErrorKind, str]:
    assert request.connection is not None
    where = f"from {request.service or 'any model'} through {request.connection.endpoint}"
    if is_over:
        return ErrorKind.DEADLINE, f"not done within {seconds} in all, {where}"
    if request.expect:
        return ErrorKind.STALLED, f"no new token for {seconds} {where}"
    return ErrorKind.DEADLINE, f"no answer within {seconds} {where}"
