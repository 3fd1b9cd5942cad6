"""Nothing of a request that has ended stays behind, however long its deadline: in the client, the broker, the node.

Each core is driven through many requests of one kind, all with an hour to live, and everything that can be reached
from it is counted before and after. What is kept on purpose (outcomes for the dedupe window, the last stories) has
reached its bound by the first count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from support import client_core, node
from support.client_core import GONE, Talk, final, partial
from support.growth import grown
from support.stage import STREAM, UNARY, Stage, ask, rid_of
from zmqrt.broker.core import Side
from zmqrt.client import queries
from zmqrt.client.failover import OpenSocket
from zmqrt.client.queries import PendingQuery
from zmqrt.protocol import messages as m
from zmqrt.protocol import snapshot
from zmqrt.protocol.timing import Timing
from zmqrt.worker.engines.base import TokenEvent

HOUR_S = 3600.0
MANY = 2000
"""The slow tests do 100,000 of each."""
SLACK = 300
"""Objects: a table's own ups and downs. One object left behind by each request would be 2,000."""
SLACK_OF = {"client_comes_and_goes": 3000}
"""What has ended in a queue is swept out of it from 64 on, together with the session that it came by."""


# --- the client ------------------------------------------------------------------------------------------------------


class Caller:
    """A client's core with a session, and one verb at a time."""

    def __init__(self) -> None:
        self.talk = Talk(client_core.A, client_core.B)
        self.connection = self.talk.up()
        self.epoch = 1

    def roots(self) -> tuple[object, ...]:
        """What is counted: the core alone."""
        return (self.talk.core,)

    def step(self) -> None:
        """Let a moment pass, and throw away what was said."""
        self.talk.now += 0.001
        self.talk.core.tick(self.talk.now)
        self.talk.settle()
        self.talk.said(self.connection)

    def unary(self, _: int) -> None:
        """One answer, whole."""
        ear = self.talk.submit(timeout_s=HOUR_S)
        self.talk.hear(self.connection, m.Accepted(ear.rid), final(ear.rid, 0))
        self.step()

    def stream(self, _: int) -> None:
        """Some units and the end."""
        ear = self.talk.submit(stream=True, timeout_s=HOUR_S)
        self.talk.hear(self.connection, partial(ear.rid, 0), partial(ear.rid, 1), final(ear.rid, 2))
        self.step()

    def cancelled(self, _: int) -> None:
        """Begun, and given up."""
        ear = self.talk.submit(stream=True, timeout_s=HOUR_S)
        self.talk.hear(self.connection, partial(ear.rid, 0))
        self.talk.cancel(ear)
        self.step()

    def failed(self, _: int) -> None:
        """The model raised."""
        ear = self.talk.submit(timeout_s=HOUR_S)
        self.talk.hear(self.connection, client_core.error(ear.rid, 500, "model_raised"))
        self.step()

    def refused_and_given_up(self, _: int) -> None:
        """It rests until the broker's advice is over, which it does not live to see."""
        ear = self.talk.submit(timeout_s=HOUR_S)
        self.talk.hear(self.connection, client_core.error(ear.rid, 429, "queue_full", retry_after_ms=600_000))
        self.talk.cancel(ear)
        self.step()

    def twin(self, _: int) -> None:
        """The same request twice, as an idempotency key makes it."""
        ear = self.talk.submit(timeout_s=HOUR_S)
        self.talk.hear(self.connection, client_core.error(ear.rid, 409, "request_id_reused"))
        self.step()

    def unnamed(self, _: int) -> None:
        """A request without a model, while the broker knows none."""
        ear = self.talk.submit(model=None, timeout_s=HOUR_S)
        self.talk.cancel(ear)
        self.step()

    def asked(self, _: int) -> None:
        """A question and its answer."""
        ear = self.talk.ask_status()
        (query,) = self.talk.sent(self.connection, m.Query)
        self.talk.hear(self.connection, m.Status(query.qid, snapshot.SCHEMA, 1, b"x"))
        assert ear.ends
        self.step()

    def put_off(self, _: int) -> None:
        """The broker says: later."""
        ear = client_core.Ear()
        self.talk.core.ask(PendingQuery(queries.explain("x").message, ear, self.talk.now, 0.5), self.talk.now)
        for query in self.talk.sent(self.connection, m.Query):
            self.talk.hear(self.connection, m.Status(query.qid, snapshot.LATER, 1, b"", {"retry_after_ms": 3_600_000}))
        self.talk.now += 1.0
        self.step()
        assert ear.ends

    def unanswered(self, number: int) -> None:
        """A broker that lives and does not answer this."""
        ear = client_core.Ear()
        self.talk.core.ask(PendingQuery(queries.explain(str(number)).message, ear, self.talk.now, 0.5), self.talk.now)
        self.talk.now += 1.0
        self.talk.hear(self.connection, m.Pong(0))
        self.step()
        assert ear.ends

    def session(self, _: int) -> None:
        """The connection is lost under a stream, which goes on in the next one."""
        ear = self.talk.submit(stream=True, timeout_s=HOUR_S)
        self.talk.hear(self.connection, partial(ear.rid, 0))
        self.talk.lose(self.connection, GONE)
        opened: list[OpenSocket] = []
        while not opened:
            self.talk.after(0.01)
            opened = [one for one in self.talk.actions() if isinstance(one, OpenSocket)]
        self.epoch += 1
        self.connection = opened[-1].connection
        self.talk.ready(self.connection)
        self.talk.hear(self.connection, m.Welcome(self.connection.endpoint, self.epoch, client_core.PARAMS))
        self.talk.hear(self.connection, final(ear.rid, 1))
        assert ear.ends
        self.step()


CALLER = [
    "unary",
    "stream",
    "cancelled",
    "failed",
    "refused_and_given_up",
    "twin",
    "unnamed",
    "asked",
    "put_off",
    "unanswered",
    "session",
]


@pytest.mark.parametrize("kind", CALLER)
def test_a_client_keeps_nothing_of_what_has_ended(kind: str) -> None:
    """Neither in its timers nor in any table."""
    caller = Caller()
    work: Callable[[int], None] = getattr(caller, kind)

    assert grown(caller.roots, work, first=500, more=MANY) < SLACK


# --- the broker ------------------------------------------------------------------------------------------------------


class House:
    """A broker with one node and one client, and one kind of request at a time."""

    def __init__(self) -> None:
        self.stage = Stage(Timing(request_timeout_s=0.5), is_admin=lambda _: True)
        self.client = self.stage.client("c")
        self.worker = self.stage.worker("w", capacity=100)
        self.beaten_at = self.stage.now
        # As many as there will ever be, soon: the bound itself has its own test.
        self.stage.broker.state.history._ended = deque(maxlen=50)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

    def roots(self) -> tuple[object, ...]:
        """What is counted: the broker alone, once the dedupe window of the last ones is over."""
        for _ in range(16):
            self.stage.now += 0.5
            self.beat()
            self.tick()
        return (self.stage.broker,)

    def beat(self) -> None:
        """Say that both are alive, and that the client has read everything."""
        self.beaten_at = self.stage.now
        self.worker.beats += 1
        self.to(
            Side.WORKERS,
            self.worker.peer,
            m.Heartbeat(self.worker.epoch, self.worker.beats, 0, self.worker.limit, "ready"),
        )
        self.to(Side.CLIENTS, self.client.peer, m.Ping(1), m.Window(1 << 50))

    def tick(self) -> None:
        """Let a moment pass."""
        self.stage.now += 0.001
        self.stage.broker.tick(self.stage.now)
        self.stage.broker.state.events.take_unlogged(self.stage.now)
        self.stage.broker.out.clear()
        if self.stage.now - self.beaten_at > 0.5:
            self.beat()

    def to(self, side: Side, peer: bytes, *messages: object) -> list[object]:
        """Give it an envelope; return what it says to that, without the checks that make a small test a long one."""
        self.stage.broker.handle(side, peer, messages, self.stage.now, "")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        said: list[object] = [message for _, _, message in self.stage.broker.out]
        self.stage.broker.out.clear()
        return said

    def dispatched(self, number: int, flags: int) -> m.Dispatch:
        """Send a request and return what the node is given."""
        said = self.to(Side.CLIENTS, self.client.peer, ask(number, flags=flags, ttl_s=HOUR_S))
        (found,) = [one for one in said if isinstance(one, m.Dispatch)]
        return found

    def node_says(self, *messages: object) -> None:
        """Give it an envelope of the node."""
        self.to(Side.WORKERS, self.worker.peer, *messages)

    def final(self, lease: int, total_n: int = 0) -> None:
        """End a lease well."""
        self.worker.limit += 1
        self.node_says(m.WorkerFinal(self.worker.epoch, lease, total_n, self.worker.limit, {}, b"done"))

    def unary(self, number: int) -> None:
        """One answer, whole."""
        lease = self.dispatched(number, UNARY).lease
        self.final(lease)
        self.tick()

    def stream(self, number: int) -> None:
        """Each unit moves the deadline on."""
        lease = self.dispatched(number, STREAM).lease
        for seq in range(3):
            self.node_says(m.WorkerPartial(self.worker.epoch, lease, seq, 1, b"u"))
            self.tick()
        self.final(lease, 3)
        self.tick()

    def cancelled(self, number: int) -> None:
        """Begun, and given up."""
        lease = self.dispatched(number, STREAM).lease
        self.node_says(m.WorkerPartial(self.worker.epoch, lease, 0, 1, b"u"))
        self.to(Side.CLIENTS, self.client.peer, m.Cancel(rid_of(number), "enough"))
        self.node_says(m.WorkerPartial(self.worker.epoch, lease, 1, 1, b"late"))
        self.worker.limit += 1  # told with the next heartbeat
        self.stage.now += 0.01
        self.tick()

    def cancelled_in_the_queue(self, number: int) -> None:
        """No node has the model; that of the queue is never started."""
        self.to(Side.CLIENTS, self.client.peer, ask(number, ttl_s=HOUR_S, service="elsewhere"))
        self.to(Side.CLIENTS, self.client.peer, m.Cancel(rid_of(number), "enough"))
        self.tick()

    def failed(self, number: int) -> None:
        """The model raised."""
        lease = self.dispatched(number, UNARY).lease
        self.worker.limit += 1
        self.node_says(
            m.WorkerError(self.worker.epoch, lease, 500, "model_raised", False, self.worker.limit, "it raised", {})
        )
        self.tick()

    def duplicate(self, number: int) -> None:
        """Asked for twice while it runs, and once more afterwards."""
        lease = self.dispatched(number, UNARY).lease
        self.to(Side.CLIENTS, self.client.peer, ask(number, flags=UNARY, ttl_s=HOUR_S))
        self.final(lease)
        self.to(Side.CLIENTS, self.client.peer, ask(number, flags=UNARY, ttl_s=HOUR_S))
        self.tick()

    def named(self, number: int) -> None:
        """Ids, traces and prompts are the client's own: none of them may become a key that stays."""
        ext: m.Ext = {"request_id": f"job-{number}", "traceparent": f"00-{number:032x}-{1:016x}-01"}
        message = ask(number, flags=UNARY, ttl_s=HOUR_S, ext=ext)
        (given,) = [one for one in self.to(Side.CLIENTS, self.client.peer, message) if isinstance(one, m.Dispatch)]
        self.final(given.lease)
        self.tick()

    def questions(self, number: int) -> None:
        """Status and explanations."""
        self.stage.now += 0.2
        self.to(
            Side.CLIENTS,
            self.client.peer,
            m.Query(number, "status"),
            m.Query(number, "explain", {"request": f"job-{number}"}),
        )
        self.tick()

    def client_comes_and_goes(self, number: int) -> None:
        """A session, a request of its own, and the end of the connection."""
        peer = b"p%d" % number
        uuid = number.to_bytes(16, "big")
        self.to(Side.CLIENTS, peer, m.Hello(uuid, 1, 1, f"client {number}"), ask(number, ttl_s=HOUR_S))
        self.stage.broker.peer_gone(Side.CLIENTS, peer, self.stage.now)
        self.stage.now += 0.01
        self.tick()

    def client_says_goodbye(self, number: int) -> None:
        """A session that is closed in good order, with a request in it."""
        peer = b"p%d" % number
        self.to(Side.CLIENTS, peer, m.Hello(number.to_bytes(16, "big"), 1, 1, "c"), ask(number, ttl_s=HOUR_S), m.Bye())
        self.tick()

    def node_comes_and_goes(self, number: int) -> None:
        """Each one a process of its own, as a restarted one is."""
        peer = b"n%d" % number
        ready = m.Ready(number.to_bytes(16, "big"), f"node-{number}", 4, self.worker.offers, [])
        (welcome,) = [one for one in self.to(Side.WORKERS, peer, ready) if isinstance(one, m.WorkerWelcome)]
        self.to(Side.WORKERS, peer, m.Leave(welcome.epoch, "done"))
        self.stage.broker.peer_gone(Side.WORKERS, peer, self.stage.now)
        self.tick()


HOUSE = [
    "unary",
    "stream",
    "cancelled",
    "cancelled_in_the_queue",
    "failed",
    "duplicate",
    "named",
    "questions",
    "client_says_goodbye",
    "node_comes_and_goes",
    "client_comes_and_goes",
]


@pytest.mark.parametrize("kind", HOUSE)
def test_a_broker_keeps_nothing_beyond_the_dedupe_window(kind: str) -> None:
    """Neither in its wheels nor in any table."""
    house = House()
    work: Callable[[int], None] = getattr(house, kind)

    # Of a node's cancelled leases the last 4,096 are remembered, a number each.
    assert grown(house.roots, work, first=5000 if kind == "cancelled" else 1000, more=MANY) < SLACK_OF.get(kind, SLACK)


# --- the node --------------------------------------------------------------------------------------------------------


class Agent:
    """A node's core with one broker and one engine."""

    def __init__(self) -> None:
        self.node = node.Node(capacity=1000)
        self.node.register()
        self.node.load(slots=1000)

    def roots(self) -> tuple[object, ...]:
        """What is counted, once the outcomes of the last ones need not be kept any more."""
        for _ in range(20):
            self.node.receive(m.BrokerHeartbeat(1, 1))
            self.node.wait(0.25)
        self.node.log.clear()
        return (self.node.core,)

    def step(self) -> None:
        """Let a moment pass."""
        self.node.now += 0.001
        self.node.receive(m.BrokerHeartbeat(1, 1))
        if self.node.core.next_deadline() <= self.node.now:
            self.node.core.tick(self.node.now)
            self.node.done()
        self.node.log.clear()

    def stream(self, number: int) -> None:
        """Some units and the end."""
        self.node.dispatch(number, ttl_ms=3_600_000)
        ticket = self.node.ticket(number)
        self.node.step(TokenEvent(ticket=ticket, token_ids=[104, 105]))
        self.node.step(TokenEvent(ticket=ticket, token_ids=[33], finish_reason="length"))
        self.step()

    def cancelled(self, number: int) -> None:
        """Begun, and given up."""
        self.node.dispatch(number, ttl_ms=3_600_000)
        ticket = self.node.ticket(number)
        self.node.step(TokenEvent(ticket=ticket, token_ids=[104]))
        self.node.receive(m.WorkerCancel(number, "enough"))
        self.node.step(TokenEvent(ticket=ticket, finish_reason="cancelled"))
        self.step()

    def failed(self, number: int) -> None:
        """The model raised."""
        self.node.dispatch(number, ttl_ms=3_600_000)
        self.node.step(TokenEvent(ticket=self.node.ticket(number), finish_reason="error", error="it raised"))
        self.step()

    def refused(self, number: int) -> None:
        """A body that is none, and a model that is not here."""
        self.node.dispatch(number, payload=b"rubbish")
        self.node.dispatch(number + (1 << 40), service=f"other-{number}")
        self.step()


AGENT = ["stream", "cancelled", "failed", "refused"]


@pytest.mark.parametrize("kind", AGENT)
def test_a_node_keeps_nothing_of_what_has_ended(kind: str) -> None:
    """Beyond the moment in which a lost connection may come back for it."""
    agent = Agent()
    work: Callable[[int], None] = getattr(agent, kind)

    assert grown(agent.roots, lambda number: work(number + 1), first=500, more=MANY) < SLACK


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("made", "kind"),
    [*((Caller, kind) for kind in CALLER), *((House, kind) for kind in HOUSE), *((Agent, kind) for kind in AGENT)],
)
def test_the_same_over_a_hundred_thousand(made: type[Caller | House | Agent], kind: str) -> None:
    """What grows by little shows here."""
    core = made()
    work: Callable[[int], None] = getattr(core, kind)

    many = 20_000 if kind in ("session", "node_comes_and_goes") else 100_000  # those take a millisecond each

    assert grown(core.roots, lambda number: work(number + 1), first=5000, more=many) < 10 * SLACK
