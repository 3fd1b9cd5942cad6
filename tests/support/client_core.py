"""A dialogue with the client's core: a test plays the broker and the clock. No socket, no thread, no sleep."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TypeVar, Unpack

import msgspec

from zmqrt.client import calls, queries
from zmqrt.client.calls import Call, GenerateOptions
from zmqrt.client.config import MAX_WAITING, ClientConfig
from zmqrt.client.connection import BrokerConnection
from zmqrt.client.core import ClientCore
from zmqrt.client.failover import CloseSocket, OpenSocket, SocketAction
from zmqrt.client.queries import PendingQuery
from zmqrt.client.requests import ClientRequest
from zmqrt.client.response import Event
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import ZmqrtError
from zmqrt.protocol.failure import Failure

A = "tcp://a:1"
B = "tcp://b:1"
PARAMS = m.Params(5000, 10_000, 30_000, 256, 8 << 20)
REFUSED = Failure("nobody listens at tcp://a:1")
GONE = Failure("the connection is gone")
WRONG_KEY = Failure("tcp://a:1: the key is wrong", is_final=True, not_authorised=True)

M = TypeVar("M", bound=m.FromClient)


@dataclass
class Ear:
    """The sink of one request: keeps what it is told."""

    call: Call | None = None
    events: list[Event] = field(default_factory=list[Event])
    is_full: bool = False

    def put(self, event: Event) -> bool:
        """Take an event."""
        self.events.append(event)
        return not self.is_full

    @property
    def rid(self) -> bytes:
        """Id of the request."""
        assert self.call is not None
        return self.call.rid

    @property
    def ids(self) -> list[int]:
        """All units delivered, in the order they came."""
        chunks = [tasks.decode(one.body, tasks.GenerateChunk) for one in self.events if isinstance(one, m.Partial)]
        return [unit for chunk in chunks for unit in chunk.ids]

    @property
    def ends(self) -> list[Event]:
        """All terminal events: there must be at most one."""
        return [one for one in self.events if not isinstance(one, m.Partial)]

    @property
    def error(self) -> ZmqrtError:
        """The error that ended it."""
        (end,) = self.ends
        assert isinstance(end, ZmqrtError), end
        return end


def partial(rid: bytes, seq: int, n: int = 1) -> m.Partial:
    """Build units `seq` ..; their ids are their numbers."""
    ids = list(range(seq, seq + n))
    return m.Partial(rid, seq, n, tasks.encode(tasks.GenerateChunk(ids=ids, text=[f"{one} " for one in ids])))


def final(rid: bytes, total_n: int) -> m.Final:
    """Build an end."""
    usage = tasks.Usage(prompt_tokens=1, completion_tokens=total_n)
    body = tasks.GenerateResult(finish_reason="stop", usage=usage, seed=1, model="toy", revision="r")
    return m.Final(rid, total_n, {}, tasks.encode(body))


def error(rid: bytes | None, code: int, reason: str, *, retry_after_ms: int = 0) -> m.Error:
    """Build a refusal as a broker would."""
    retryable = code in (429, 503) or reason in ("no_session", "worker_lost")
    return m.Error(rid, code, reason, retryable, retry_after_ms, f"because of {reason}")


def units_of(blob: bytes) -> list[int]:
    """Read a RESUME blob: the ids of the units that it holds."""
    bodies = msgspec.msgpack.decode(blob, type=list[bytes])
    return [unit for body in bodies for unit in tasks.decode(body, tasks.GenerateChunk).ids]


class Talk:
    """A core, its clock, and shorthand for what a broker and a socket would tell it."""

    def __init__(self, *endpoints: str, timeout_s: float = 30.0, max_waiting: int = MAX_WAITING) -> None:
        self.config = ClientConfig(endpoints=endpoints or (A,), timeout_s=timeout_s, max_waiting=max_waiting)
        self.core = ClientCore(self.config, b"u" * 16, random.Random(1))
        self.now = 100.0
        self.core.start(self.now)
        self.core.tick(self.now)

    # --- the application

    def submit(self, prompt: str = "hi", *, stream: bool = False, **options: Unpack[GenerateOptions]) -> Ear:
        """Submit a generation to the model `toy`, unless another is named."""
        options.setdefault("model", "toy")
        call = calls.generate(self.config, prompt, stream=stream, options=options)
        ear = Ear(call)
        self.core.submit(ClientRequest(call, ear, self.now), self.now)
        self.settle()
        return ear

    def connect(self) -> Ear:
        """Wait for a session."""
        ear = Ear()
        self.core.ask(PendingQuery(queries.connection().message, ear, self.now, 30.0), self.now)
        return ear

    def ask_status(self) -> Ear:
        """Ask how the broker is."""
        ear = Ear()
        self.core.ask(PendingQuery(queries.status().message, ear, self.now, 30.0), self.now)
        return ear

    def cancel(self, ear: Ear) -> None:
        """Give a request up."""
        self.core.cancel(ear.rid, self.now)
        self.settle()

    # --- time

    def after(self, seconds: float) -> None:
        """Let time pass, stopping at every deadline on the way."""
        end = self.now + seconds
        rounds = 0
        while (due := self.core.next_deadline()) <= end:
            rounds += 1
            assert rounds < 100_000, f"the core never rests: due {due}, now {self.now}"
            self.now = max(self.now, due)
            self.core.tick(self.now)
            self.settle()
        self.now = end

    def settle(self) -> None:
        """Hand events to their sinks, as the shell does."""
        while events := self.core.take_events():
            for sink, event in events:
                if not sink.put(event) and isinstance(event, m.Partial):
                    self.core.overflowed(event.rid, self.now, sink)

    # --- sockets

    def actions(self) -> list[SocketAction]:
        """Take what the shell should do."""
        return self.core.take_actions()

    def opened(self) -> BrokerConnection:
        """Take the one session that was to be opened."""
        (connection,) = [one.connection for one in self.actions() if isinstance(one, OpenSocket)]
        return connection

    def ready(self, connection: BrokerConnection) -> None:
        """End the ZMTP handshake."""
        self.core.connection_ready(connection, self.now)

    def up(self, *, epoch: int = 1, params: m.Params = PARAMS, name: str | None = None) -> BrokerConnection:
        """Open the next session and greet back."""
        connection = self.opened()
        self.ready(connection)
        assert len(self.sent(connection, m.Hello)) == 1
        self.hear(connection, m.Welcome(name or connection.endpoint, epoch, params))
        return connection

    def lose(self, connection: BrokerConnection, failure: Failure | None = GONE) -> None:
        """Cut a connection."""
        self.core.connection_failed(connection, failure, self.now)
        self.settle()

    def hear(self, connection: BrokerConnection, *messages: m.ToClient) -> None:
        """Receive from a broker."""
        self.core.received(connection, messages, self.now)
        self.settle()

    def said(self, connection: BrokerConnection) -> list[m.FromClient]:
        """Take everything a connection has to say."""
        messages = connection.outbox[:]
        connection.outbox.clear()
        if messages:
            connection.note_sent(self.now)
        return messages

    def sent(self, connection: BrokerConnection, kind: type[M]) -> list[M]:
        """Take what a connection has to say, and return the messages of one kind."""
        return [one for one in self.said(connection) if isinstance(one, kind)]

    def closed(self) -> list[str]:
        """Take the endpoints of the sessions that were to be closed."""
        return [one.connection.endpoint for one in self.actions() if isinstance(one, CloseSocket)]


def started(
    *endpoints: str, stream: bool = False, **options: Unpack[GenerateOptions]
) -> tuple[Talk, Ear, BrokerConnection]:
    """Begin a dialogue: one request, and the session in which the first broker was given it."""
    talk = Talk(*endpoints)
    ear = talk.submit(stream=stream, **options)
    return talk, ear, talk.up()
