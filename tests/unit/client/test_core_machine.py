"""The core against brokers that lose, repeat, forget, refuse, restart and leave, in any order Hypothesis can think of.

Whatever happens, a request ends once, a stream has neither gap nor repeat, and nothing is left hanging.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from support.client_core import REFUSED, A, B, Ear, Talk, error, final, partial, units_of
from support.examples import examples
from zmqrt.client.connection import BrokerConnection, ConnectionState
from zmqrt.client.failover import OpenSocket
from zmqrt.client.requests import ClientRequestState
from zmqrt.protocol import messages as m

TOTAL = 8
ROOM = 3
PARAMS = m.Params(1000, 2000, 30_000, ROOM, 1 << 23)


@dataclass
class Broker:
    """What one broker remembers: the units it made of each request, and what each session may still be owed."""

    epoch: int = 1
    is_running: bool = True
    made: dict[bytes, int] = field(default_factory=dict[bytes, int])
    owed: dict[int, set[bytes]] = field(default_factory=dict[int, set[bytes]])


class Machine(RuleBasedStateMachine):
    """Two brokers, one client, connections that are FIFO but may be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = Talk(A, B)
        self.brokers = {A: Broker(), B: Broker()}
        self.ears: list[Ear] = []
        self.wires: dict[int, tuple[BrokerConnection, list[m.ToClient]]] = {}
        self.runs: dict[bytes, set[tuple[str, int]]] = {}

    # --- the application

    @rule(stream=st.booleans(), idempotent=st.sampled_from([True, True, True, False]))
    def submit(self, *, stream: bool, idempotent: bool) -> None:
        """Ask for something."""
        if len(self.ears) < 8:
            self.ears.append(self.talk.submit(stream=stream, idempotent=idempotent, timeout_s=60))

    @precondition(lambda self: self.ears)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Give one up."""
        self.talk.cancel(data.draw(st.sampled_from(self.ears)))

    # --- sockets and time

    @rule()
    def carry_out(self) -> None:
        """Open what the core wants opened."""
        for action in self.talk.actions():
            if isinstance(action, OpenSocket):
                connection = action.connection
                if self.brokers[connection.endpoint].is_running:
                    self.wires[connection.id] = (connection, [])
                    self.talk.ready(connection)
                else:
                    self.talk.lose(connection, REFUSED)

    @rule(seconds=st.floats(0.01, 1.0))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.talk.after(seconds)

    @rule(
        rounds=st.integers(1, 4), reads=st.integers(0, 6), fault=st.sampled_from(["", "lose", "repeat"]), data=st.data()
    )
    def run(self, rounds: int, reads: int, fault: str, data: st.DataObject) -> None:
        """Let everybody work for a while; what is not read stays on its way, where things may vanish or double."""
        for _ in range(rounds):
            self.carry_out()
            for connection, wire in self.live_wires():
                self.broker_reads(connection, wire, data)
                for ear in self.ears:
                    self.make(connection, wire, ear.rid)
                self.spoil(wire, fault, data)
                heard, wire[:] = wire[:reads], wire[reads:]
                if heard:
                    self.talk.hear(connection, *heard)
            self.talk.after(0.02)

    def spoil(self, wire: list[m.ToClient], fault: str, data: st.DataObject) -> None:
        """Break a promise of the broker. Never lose a FINAL: that would be an end that nobody tells."""
        where = [i for i, one in enumerate(wire) if isinstance(one, m.Partial) or fault == "repeat"]
        if not fault or not where:
            return
        index = data.draw(st.sampled_from(where))
        if fault == "repeat":
            wire.insert(index, wire[index])
        else:
            del wire[index]

    def broker_reads(self, connection: BrokerConnection, wire: list[m.ToClient], data: st.DataObject | None) -> None:
        """Let a broker read what a connection says, and answer."""
        for message in self.talk.said(connection):
            wire.extend(self.answers(connection, message, data))

    # --- faults

    @rule()
    def cut(self) -> None:
        """Cut every connection; the brokers live on and remember."""
        for connection, _ in self.live_wires():
            self.talk.lose(connection)

    @rule(which=st.sampled_from([A, B]), comes_back=st.booleans())
    def kill(self, which: str, *, comes_back: bool) -> None:
        """Kill a broker; a new one forgets everything."""
        self.brokers[which] = Broker(self.brokers[which].epoch + 1, comes_back)
        for connection, _ in self.live_wires():
            if connection.endpoint == which:
                self.talk.lose(connection)

    @rule()
    def go_away(self) -> None:
        """Let the broker in use leave."""
        for _, wire in self.live_wires():
            wire.append(m.Goaway("drain", 500))

    @rule(link_forgets=st.booleans())
    def forget_session(self, *, link_forgets: bool) -> None:
        """Let the broker take the client for gone."""
        for _, wire in self.live_wires():
            if link_forgets:
                wire.append(error(None, 401, "no_session"))

    # --- the broker's side

    def live_wires(self) -> list[tuple[BrokerConnection, list[m.ToClient]]]:
        """Return the connections that stand."""
        return [
            (connection, wire)
            for connection, wire in self.wires.values()
            if connection.state is not ConnectionState.DEAD
        ]

    def answers(
        self, connection: BrokerConnection, message: m.FromClient, data: st.DataObject | None
    ) -> list[m.ToClient]:
        """Answer one message as a broker does, or refuse it."""
        broker = self.brokers[connection.endpoint]
        owed = broker.owed.setdefault(connection.id, set())
        match message:
            case m.Hello():
                owed.clear()
                return [m.Welcome(connection.endpoint, broker.epoch, PARAMS)]
            case m.Ping():
                return [m.Pong(message.nonce)]
            case m.Cancel():
                owed.discard(message.rid)
                return [error(message.rid, 499, "cancelled")] if broker.made.pop(message.rid, None) is not None else []
            case m.Request():
                owed.add(message.rid)
                assert len(owed) <= ROOM, "more than WELCOME allows"
                replies = self.admit(connection, broker, message, data)
                if replies and isinstance(replies[-1], m.Final | m.Error):
                    owed.discard(message.rid)
                return replies
            case _:
                return []

    def admit(
        self, connection: BrokerConnection, broker: Broker, request: m.Request, data: st.DataObject | None
    ) -> list[m.ToClient]:
        """Take a request on: check the units that come with it, replay those that the client lacks."""
        if data is not None and data.draw(st.integers(0, 9)) == 0 and request.rid not in broker.made:
            return [error(request.rid, 429, "queue_full", retry_after_ms=100)]
        runs = self.runs.setdefault(request.rid, set())
        runs.add((connection.endpoint, broker.epoch))
        assert request.flags & m.IDEMPOTENT or len(runs) == 1, "run twice"
        if request.flags & m.RESUME:
            assert units_of(request.resume) == list(range(request.resume_n))
            broker.made[request.rid] = request.resume_n
            return [final(request.rid, TOTAL)] if request.resume_n == TOTAL else []
        made = broker.made.setdefault(request.rid, 0)
        assert request.resume_n <= made, "units are asked for that this broker never made"
        if not request.flags & m.STREAM:
            return [final(request.rid, TOTAL)] if made == TOTAL else [m.Accepted(request.rid)]
        replay: list[m.ToClient] = [partial(request.rid, n) for n in range(request.resume_n, made)]
        return [*replay, final(request.rid, TOTAL)] if made == TOTAL else replay or [m.Accepted(request.rid)]

    def make(self, connection: BrokerConnection, wire: list[m.ToClient], rid: bytes) -> None:
        """Make one more unit of a request that this session is owed."""
        broker = self.brokers[connection.endpoint]
        request = self.talk.core.table.live.get(rid)
        if request is None or rid not in broker.owed.get(connection.id, ()) or broker.made.get(rid, TOTAL) >= TOTAL:
            return
        broker.made[rid] += 1
        if request.is_stream:
            wire.append(partial(rid, broker.made[rid] - 1))
        if broker.made[rid] == TOTAL:
            broker.owed[connection.id].discard(rid)
            wire.append(final(rid, TOTAL))

    # --- what must always hold

    @invariant()
    def streams_are_whole(self) -> None:
        """No gap, no repeat, one end; a result only with all units."""
        for ear in self.ears:
            assert ear.ids == list(range(len(ear.ids)))
            assert len(ear.ends) <= 1
            if ear.call is not None and ear.call.flags & m.STREAM and ear.ends and isinstance(ear.ends[0], m.Final):
                assert len(ear.ids) == TOTAL

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        """In the line, resting, or in one session; and those that ended are nowhere."""
        table = self.talk.core.table
        held = [rid for connection in self.talk.core.connections.by_id.values() for rid in connection.outstanding]
        for ear in self.ears:
            places = held.count(ear.rid) + (ear.rid in table.queue)
            request = table.live.get(ear.rid)
            if ear.ends:
                assert request is None
                assert places == 0
            else:
                assert request is not None
                assert places == (0 if request.state is ClientRequestState.BACKING_OFF else 1)

    @invariant()
    def the_broker_is_never_given_too_much(self) -> None:
        """WELCOME said how much."""
        for connection in self.talk.core.connections.by_id.values():
            assert len(connection.outstanding) <= ROOM

    def teardown(self) -> None:
        """Once faults stop, everything ends."""
        for broker in self.brokers.values():
            broker.is_running = True
        for _ in range(600):
            self.carry_out()
            for connection, wire in self.live_wires():
                self.broker_reads(connection, wire, None)
                for ear in self.ears:
                    self.make(connection, wire, ear.rid)
                heard, wire[:] = wire[:], []
                self.talk.hear(connection, *heard)
            self.talk.after(0.1)
        assert all(ear.ends for ear in self.ears)
        assert not self.talk.core.table.live
        self.streams_are_whole()


Machine.TestCase.settings = settings(
    max_examples=examples(60),
    stateful_step_count=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestTheCore = Machine.TestCase
