"""A node between two brokers and two engines that do as they please: whatever happens, no unit is lost or doubled.

The test plays brokers (each remembers its leases and how far it has heard of them) and engines (each computes the token
that is due from the ids it was given, so a wrong prefix shows at once).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.examples import examples
from support.node import PARAMS, STREAM, Node, body, rid, sent
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.tasks import GenerateChunk
from zmqrt.worker import actions as a
from zmqrt.worker.broker_sessions import SessionState
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import TokenEvent, TokenRequest

BROKERS, DEVICES, SLOTS, BATCH = 2, 2, 2, 1
MAX_TOKENS = 8
numbers = st.integers(1, 6)


def token(number: int, position: int) -> int:
    """Return the token that is due at a position of a request."""
    return ord("a") + (7 * number + 3 * position) % 26


def answer(number: int, start: int, end: int) -> list[int]:
    """Return a stretch of the right answer."""
    return [token(number, position) for position in range(start, end)]


@dataclass
class Lease:
    """A lease as its broker knows it."""

    number: int
    next_n: int


@dataclass
class Broker:
    """One broker: its live leases, its credit."""

    epoch: int = 0
    given: int = 0
    limit: int = 0
    is_up: bool = False
    may_send: bool = True
    leases: dict[int, Lease] = field(default_factory=dict[int, Lease])
    ended: dict[int, Lease] = field(default_factory=dict[int, Lease])
    """Leases whose FINAL has just been sent: it may be lost with the connection."""

    def allow(self, limit: int) -> None:
        """Take credit; it never goes down within an epoch."""
        assert limit >= self.limit
        self.may_send = self.may_send or limit > self.limit
        self.limit = limit


@dataclass
class Engine:
    """One engine process: what runs in it."""

    is_up: bool = False
    running: dict[int, TokenRequest] = field(default_factory=dict[int, TokenRequest])
    cancelled: list[int] = field(default_factory=list[int])


class NodeMachine(RuleBasedStateMachine):
    """Drive a node with everything that can happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node(brokers=BROKERS, devices=DEVICES, batch=BATCH)
        self.brokers = [Broker() for _ in range(BROKERS)]
        self.engines = [Engine() for _ in range(DEVICES)]
        self.next_lease = 1
        self.refused = self.finished = self.resumed = 0

    # --- what the node wants done

    def obey(self, made: list[a.Action]) -> None:
        """Play the brokers and engines that the actions go to."""
        for action in made:
            if isinstance(action, a.ToEngine):
                self.to_engine(self.engines[self.node.devices.index(action.device)], action.message)
            elif isinstance(action, a.Send):
                self.to_broker(self.brokers[action.broker], action.message)

    def to_engine(self, engine: Engine, message: ipc.ToEngine) -> None:
        """Take a request in; the ids it goes on from must be the right ones."""
        assert engine.is_up
        if isinstance(message, ipc.CancelTicket):
            assert engine.running.pop(message.ticket, None) is not None
            engine.cancelled.append(message.ticket)
        elif isinstance(message, ipc.Submit):
            request = message.request
            number = request.prompt_ids[-1]
            assert request.resume_ids == answer(number, 0, len(request.resume_ids))
            assert len(engine.running) + len(engine.cancelled) < SLOTS
            self.resumed += bool(request.resume_ids)
            engine.running[request.ticket] = request

    def to_broker(self, broker: Broker, message: m.FromWorker) -> None:
        """Check what comes against what is due; an answer to a lease that is not live must not come at all."""
        if isinstance(message, m.Ready):
            return
        assert broker.is_up
        assert message.epoch == broker.epoch
        if isinstance(message, m.WorkerPartial):
            lease = broker.leases[message.lease]
            chunk = tasks.decode(message.body, GenerateChunk)
            assert message.seq == lease.next_n
            assert chunk.ids == answer(lease.number, message.seq, message.seq + message.n)
            lease.next_n += message.n
        elif isinstance(message, m.WorkerFinal):
            lease = broker.ended[message.lease] = broker.leases.pop(message.lease)
            assert message.total_n == lease.next_n == MAX_TOKENS
            self.finished += 1
            broker.allow(message.dispatch_limit)
        elif isinstance(message, m.WorkerError):
            del broker.leases[message.lease]
            self.refused += message.code == 429
            assert message.code in (429, 499, 503)
            broker.may_send = broker.may_send and message.code != 429
            broker.allow(message.dispatch_limit)
        elif isinstance(message, m.Heartbeat | m.Credit):
            broker.allow(message.dispatch_limit)

    # --- what happens

    @initialize(loaded=st.integers(0, DEVICES))
    def begin(self, loaded: int) -> None:
        """Most runs begin with everything up."""
        for index in range(BROKERS):
            self.register(index, [True])
        for index in range(loaded):
            self.load(index)

    @rule(index=st.integers(0, BROKERS - 1), unheard=st.integers(0, 3), forgotten=st.integers(0, 3))
    def blink(self, index: int, unheard: int, forgotten: int) -> None:
        """A connection breaks and is back at once; meanwhile engines go on."""
        self.lose(index, unheard)
        for device in range(DEVICES):
            self.step(device, 2)
        self.register(index, [lease % 4 != forgotten for lease in range(4)])

    @rule(index=st.integers(0, BROKERS - 1), wanted=st.lists(st.booleans(), min_size=1, max_size=4))
    def register(self, index: int, wanted: list[bool]) -> None:
        """A broker comes back; it takes back some of the leases it is told of, from where it stands."""
        broker = self.brokers[index]
        if broker.is_up:
            return
        session = self.node.core.sessions[index]
        self.obey(self.node.wait(0.001))
        while session.state is SessionState.DOWN:
            self.wait(max(0.01, min(1.0, session.deadline - self.node.now)))  # the other broker goes on beating
        self.node.core.connected(index, self.node.now)
        (ready,) = sent(self.node.done(), m.Ready, index)
        rebound = [
            m.Rebound(held.lease, min(broker.leases[held.lease].next_n, held.n))
            for held in ready.held
            if held.lease in broker.leases and wanted[held.lease % len(wanted)]
        ]
        broker.leases = {one.lease: broker.leases[one.lease] for one in rebound}
        broker.epoch, broker.given, broker.limit, broker.is_up, broker.may_send = broker.epoch + 1, 0, 0, True, True
        self.obey(self.node.receive(m.WorkerWelcome("b", 1, broker.epoch, PARAMS, rebound), broker=index))

    @rule(index=st.integers(0, BROKERS - 1), unheard=st.integers(0, 3))
    def lose(self, index: int, unheard: int) -> None:
        """The connection breaks; the last units and outcomes may not have arrived (the broker keeps its leases)."""
        broker = self.brokers[index]
        if not broker.is_up:
            return
        broker.is_up = False
        if unheard:
            broker.leases |= broker.ended
        broker.ended.clear()
        for lease in broker.leases.values():
            lease.next_n = max(lease.next_n - unheard, 0)
        self.node.core.lost(index, "reset", self.node.now)
        self.obey(self.node.done())

    @rule(index=st.integers(0, BROKERS - 1), number=numbers, delivered=st.integers(0, MAX_TOKENS))
    def dispatch(self, index: int, number: int, delivered: int) -> None:
        """A broker spends its credit; the request may come with units that were delivered before."""
        broker = self.brokers[index]
        if not (broker.is_up and broker.may_send and broker.given < broker.limit):
            return
        for lease, known in list(broker.leases.items()):
            if known.number == number:
                del broker.leases[lease]  # fenced: the newer lease replaces it
        lease, self.next_lease = self.next_lease, self.next_lease + 1
        broker.given += 1
        broker.leases[lease] = Lease(number, delivered)
        prefix = [GenerateChunk(ids=answer(number, 0, delivered), text=[""] * delivered)] if delivered else []
        payload = tasks.encode(tasks.Generate(token_ids=[number], max_tokens=MAX_TOKENS))
        made = self.node.dispatch(
            number, broker=index, lease=lease, flags=STREAM, payload=payload, prefix=prefix, ttl_ms=3_600_000
        )
        self.obey(made)

    @rule(index=st.integers(0, BROKERS - 1), data=st.data())
    def cancel(self, index: int, data: st.DataObject) -> None:
        """A broker takes a lease back."""
        broker = self.brokers[index]
        if broker.is_up and broker.leases:
            lease = data.draw(st.sampled_from(sorted(broker.leases)))
            del broker.leases[lease]
            self.obey(self.node.receive(m.WorkerCancel(lease), broker=index))

    @rule(index=st.integers(0, DEVICES - 1), tokens=st.integers(0, 3))
    def step(self, index: int, tokens: int) -> None:
        """An engine makes a step."""
        engine = self.engines[index]
        if not engine.is_up:
            return
        events = [TokenEvent(ticket=ticket, finish_reason="cancelled") for ticket in engine.cancelled]
        engine.cancelled.clear()
        for ticket, request in list(engine.running.items()):
            start, number = len(request.resume_ids), request.prompt_ids[-1]
            end = min(start + tokens, request.max_new_tokens)
            is_over = end == request.max_new_tokens
            made = answer(number, start, end)
            events.append(TokenEvent(ticket=ticket, token_ids=made, finish_reason="length" if is_over else None))
            request.resume_ids.extend(made)
            if is_over:
                del engine.running[ticket]
        self.obey(self.node.step(*events, device=index))

    @rule(index=st.integers(0, DEVICES - 1))
    def refuse(self, index: int) -> None:
        """An engine has less room than it said."""
        engine = self.engines[index]
        if engine.running:
            ticket = max(engine.running)
            del engine.running[ticket]
            self.obey(self.node.engine(ipc.Refused(ticket, full=True, error=""), device=index))

    @rule(index=st.integers(0, DEVICES - 1))
    def load(self, index: int) -> None:
        """An engine is ready."""
        self.beat()
        if not self.engines[index].is_up:
            self.engines[index] = Engine(is_up=True)
            self.obey(self.node.load(index, SLOTS))

    @rule(index=st.integers(0, DEVICES - 1))
    def die(self, index: int) -> None:
        """An engine process dies."""
        self.beat()
        if self.engines[index].is_up:
            self.engines[index] = Engine()
            self.obey(self.node.kill(index))

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.2]))
    def wait(self, seconds: float) -> None:
        """Time passes; brokers that are up give signs of life."""
        self.beat()
        self.obey(self.node.wait(seconds))
        for broker in self.brokers:
            broker.ended.clear()

    def beat(self) -> None:
        """Brokers that are up give a sign of life, before what takes a node time."""
        for index, broker in enumerate(self.brokers):
            if broker.is_up:
                self.obey(self.node.receive(m.BrokerHeartbeat(broker.epoch, 1), broker=index))

    @invariant()
    def state_is_sound(self) -> None:
        """Jobs, leases, tickets and slots agree."""
        self.node.check()
        jobs = self.node.core.requests.jobs.values()
        assert len(jobs) <= DEVICES * (SLOTS + BATCH)
        room = sum(engine.is_up for engine in self.engines) * (SLOTS + BATCH)
        for index, broker in enumerate(self.brokers):
            assert broker.may_send or not broker.is_up or len(jobs) >= room, "refused, and never told of the free slot"
            held = self.node.core.sessions[index].leases
            live = {lease for lease, job in held.items() if job.state.value != "done"}
            if broker.is_up:
                assert live == set(broker.leases)
                assert set(broker.ended) <= set(held)

    @precondition(lambda self: any(broker.is_up for broker in self.brokers))
    @rule()
    def finish_everything(self) -> None:
        """When nothing more goes wrong, every live lease ends in FINAL and nothing is left over."""
        for index in range(DEVICES):
            self.load(index)
        for _ in range(4 * MAX_TOKENS):
            for index in range(DEVICES):
                self.step(index, 2)
        self.wait(1.2)
        self.wait(1.2)

        assert all(not broker.leases for broker in self.brokers if broker.is_up)
        assert self.node.core.requests.jobs == {}
        assert all(not engine.running and not engine.cancelled for engine in self.engines)
        for broker in self.brokers:
            if broker.is_up and broker.may_send:
                assert broker.limit > broker.given


NodeMachine.TestCase.settings = settings(max_examples=examples(50), stateful_step_count=60)
test_a_node_loses_and_doubles_nothing = NodeMachine.TestCase


def test_the_machine_reaches_what_it_is_for() -> None:
    """A scripted run: resumes, refusals and results do happen in it."""
    machine = NodeMachine()
    for index in range(DEVICES):
        machine.load(index)
    machine.brokers[0].is_up = machine.brokers[1].is_up = True
    for index, broker in enumerate(machine.brokers):
        broker.epoch = 1
        machine.obey(machine.node.register(index))
    for number in range(1, 7):
        machine.dispatch(0, number, number % 3)
    machine.step(0, 2)
    machine.dispatch(1, 6, 0)
    machine.die(0)
    machine.finish_everything()

    assert machine.resumed >= 4
    assert machine.finished >= 4
    assert body()
    assert rid(1)
