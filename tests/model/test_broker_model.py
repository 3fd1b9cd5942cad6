"""The broker core against everything at once: Hypothesis plays clients, workers, time and failures.

After each event the tables must agree with each other (`support.broker_invariants`), and what was said must make sense
to those it was said to: one terminal message for each request, units in order and with the right content, nothing for a
peer that is not there, resumes that carry exactly what was delivered.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from support.broker_invariants import check
from support.examples import examples
from support.stage import SERVICE, Client, Stage, Worker, ask, offer, rid_of
from zmqrt.broker.core import SendFailure, Side
from zmqrt.protocol import messages as m
from zmqrt.protocol.capabilities import abilities_of, needs_in
from zmqrt.protocol.codec import BadMessage
from zmqrt.protocol.errors import ErrorKind
from zmqrt.protocol.timing import Timing

RIDS = st.integers(1, 8)
FLAGS = st.sampled_from(
    [
        m.IDEMPOTENT,
        0,
        m.IDEMPOTENT | m.RESUMABLE,
        m.IDEMPOTENT | m.STREAM,
        m.IDEMPOTENT | m.STREAM | m.RESUMABLE,
        m.IDEMPOTENT | m.STREAM | m.RESUMABLE,
        m.STREAM,
        m.IDEMPOTENT,
    ]
)
WHICH = st.integers(0, 5)
ERRORS = st.sampled_from(
    [
        ErrorKind.NO_SLOT,
        ErrorKind.MODEL_RAISED,
        ErrorKind.ENGINE_RESTARTED,
        ErrorKind.DRAINING,
        ErrorKind.BAD_REQUEST,
        ErrorKind.WORKER_LOST,
    ]
)
TIMING = Timing(heartbeat_s=2.0, eviction_s=4.0, request_timeout_s=10.0)


def units(rid: bytes, seq: int, n: int) -> bytes:
    """Make the one true content of some units: eight bytes each, different for each request and position."""
    return b"".join(hashlib.sha256(rid + bytes([i % 256, i // 256])).digest()[:8] for i in range(seq, seq + n))


class Desk:
    """What one client knows of its requests: by rid, the next unit it expects."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.is_there = True
        self.open: dict[bytes, int] = {}
        self.ghosts: set[bytes] = set()
        """Requests that another connection of the same client has taken over, if the broker let it."""
        self.flags: dict[bytes, int] = {}
        self.received = 0

    def asked(self, request: m.Request) -> None:
        """Note a REQUEST."""
        self.open[request.rid] = request.resume_n
        self.ghosts.discard(request.rid)
        self.flags[request.rid] = request.flags

    def hear(self) -> None:
        """Check what was said to this client."""
        for message in self.client.hear():
            assert self.is_there, f"said to a client that is gone: {message}"
            if getattr(message, "rid", None) in self.ghosts:
                self.received += len(getattr(message, "body", b""))
                continue
            match message:
                case m.Partial():
                    expected = self.open[message.rid]
                    assert message.seq <= expected < message.seq + message.n, (message, expected)
                    assert message.body == units(message.rid, message.seq, message.n)
                    self.open[message.rid] = message.seq + message.n
                    self.received += len(message.body)
                case m.Final():
                    expected = self.open.pop(message.rid)
                    assert not self.flags[message.rid] & m.STREAM or message.total_n == expected
                    self.received += len(message.body)
                case m.Error(rid=bytes() as rid):
                    del self.open[rid]
                case m.Accepted():
                    assert message.rid in self.open
                case _:
                    pass


class Plant:
    """What one worker process does: its jobs by lease, as the messages say."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.is_there = True
        self.jobs: dict[int, list[Any]] = {}
        self.leases: set[int] = set()

    def hear(self) -> None:
        """Check what was said to this worker, and take its work."""
        for message in self.worker.hear():
            assert self.is_there, f"said to a worker that is gone: {message}"
            match message:
                case m.Dispatch():
                    (mine,) = (one for one in self.worker.offers if one.service == message.service)
                    assert needs_in(message.ext) <= abilities_of(mine), "a node got what it cannot do"
                    assert message.lease not in self.leases
                    self.leases.add(message.lease)
                    assert bool(message.resume) == bool(message.flags & m.RESUME)
                    if message.flags & m.RESUME:
                        assert b"".join(msgspec.msgpack.decode(message.resume, type=list[bytes])) == units(
                            message.rid, 0, message.resume_n
                        )
                    self.jobs[message.lease] = [message.rid, message.resume_n, message.flags]
                case m.WorkerCancel():
                    self.jobs.pop(message.lease, None)
                case m.Dismiss():
                    self.is_there = False
                case m.WorkerWelcome():
                    kept = {one.lease: one.next_n for one in message.rebound}
                    self.jobs = {lease: job for lease, job in self.jobs.items() if lease in kept}
                    for lease, next_n in kept.items():
                        self.jobs[lease][1] = next_n
                case _:
                    pass


class Model(RuleBasedStateMachine):
    """All that can happen to a broker."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(
            TIMING,
            in_flight=3,
            outstanding=6,
            window_bytes=64,
            unsent_bytes=96,
            prefix_bytes=200,
            result_cache_bytes=8000,
            held_bytes=40_000,
            subscribers=2,
            attempts=3,
            crashes=2,
        )
        self.desks: list[Desk] = []
        self.plants: list[Plant] = []
        self.names = 0

    # --- who takes part --------------------------------------------------------------------------------------------

    def name(self) -> str:
        """Make a routing id that was never used."""
        self.names += 1
        return f"peer-{self.names}"

    def desk(self, which: int) -> Desk | None:
        """Pick a client that is there."""
        there = [one for one in self.desks if one.is_there]
        return there[which % len(there)] if there else None

    def plant(self, which: int) -> Plant | None:
        """Pick a worker that is there."""
        there = [one for one in self.plants if one.is_there]
        return there[which % len(there)] if there else None

    def job(self, which: int, lease: int) -> tuple[Plant, int, list[Any]] | None:
        """Pick a job that a worker believes to have."""
        there = [one for one in self.plants if one.is_there and one.jobs]
        if not there:
            return None
        plant = there[which % len(there)]
        chosen = list(plant.jobs)[lease % len(plant.jobs)]
        return plant, chosen, plant.jobs[chosen]

    def listen(self) -> None:
        """Let everybody hear what was said."""
        for desk in self.desks:
            desk.hear()
        for plant in self.plants:
            plant.hear()
        for (_, peer), said in self.stage.said.items():
            raise AssertionError(f"said to nobody: {peer!r} {said}")

    # --- clients ---------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 2))
    def connect_client(self, which: int) -> None:
        """Open a session; three client processes, each of which may have several connections."""
        if sum(one.is_there for one in self.desks) >= 4:
            return
        client = Client(self.stage, self.name(), "")
        client.uuid = bytes([which]) * 16
        self.desks.append(Desk(client))
        client.send(m.Hello(client.uuid, 1, 1))
        self.listen()

    @rule(
        which=WHICH,
        rid=RIDS,
        flags=FLAGS,
        prio=st.integers(-1, 1),
        service=st.sampled_from([SERVICE] * 4 + ["other"]),
        needs=st.sampled_from([None, None, "logprobs", "tools", "tools,logprobs"]),
    )
    def request(self, which: int, rid: int, flags: int, prio: int, service: str, needs: str | None) -> None:
        """Ask for something, perhaps for the second time."""
        desk = self.desk(which)
        if desk is not None:
            ext: m.Ext = {} if needs is None else {"needs": needs}
            self.send_request(desk, ask(rid, flags=flags, prio=prio, service=service, ttl_s=5.0, ext=ext))

    @rule(which=WHICH, rid=RIDS, resume_n=st.integers(1, 12), with_blob=st.booleans())
    def ask_to_go_on(self, which: int, rid: int, resume_n: int, with_blob: bool) -> None:  # noqa: FBT001
        """Ask for the rest of a stream, with or without the units before it."""
        desk = self.desk(which)
        if desk is None:
            return
        flags = m.IDEMPOTENT | m.STREAM | m.RESUMABLE | (m.RESUME if with_blob else 0)
        bodies = [units(rid_of(rid), i, 1) for i in range(resume_n)]
        blob = msgpack.packb(bodies) if with_blob else b""
        ext: m.Ext = {"revision": "r1"} if resume_n % 2 else {}
        self.send_request(desk, ask(rid, flags=flags, resume_n=resume_n, resume=blob, ttl_s=5.0, ext=ext))

    def send_request(self, desk: Desk, request: m.Request) -> None:
        """Send a REQUEST and note that it was sent."""
        for other in self.desks:
            if (
                other is not desk
                and other.client.uuid == desk.client.uuid
                and other.open.pop(request.rid, None) is not None
            ):
                other.ghosts.add(request.rid)
        desk.asked(request)
        desk.client.send(request)
        self.listen()

    @rule(which=WHICH, rid=RIDS)
    def cancel(self, which: int, rid: int) -> None:
        """Give something up."""
        desk = self.desk(which)
        if desk is not None:
            desk.client.send(m.Cancel(rid_of(rid)))
            self.listen()

    @rule(which=WHICH, far=st.booleans())
    def consume(self, which: int, far: bool) -> None:  # noqa: FBT001
        """Read everything, or half of it."""
        desk = self.desk(which)
        if desk is not None:
            desk.client.send(m.Window(desk.received if far else desk.received // 2))
            self.listen()

    @rule(which=WHICH)
    def ping(self, which: int) -> None:
        """Show a sign of life, and ask."""
        desk = self.desk(which)
        if desk is not None:
            desk.client.send(m.Ping(1), m.Query(1, "status"))
            self.listen()

    @rule(which=WHICH, says_bye=st.booleans())
    def client_leaves(self, which: int, says_bye: bool) -> None:  # noqa: FBT001
        """Leave, or be lost."""
        desk = self.desk(which)
        if desk is None:
            return
        desk.is_there = False
        if says_bye:
            desk.client.send(m.Bye())
        else:
            self.stage.gone(desk.client)
        self.listen()

    # --- workers ---------------------------------------------------------------------------------------------------

    @rule(
        which=st.integers(0, 3),
        capacity=st.integers(1, 3),
        revision=st.sampled_from(["r1", "r1", "r2"]),
        other=st.booleans(),
        can=st.sampled_from([None, [], ["logprobs", "tools"]]),
    )
    def connect_worker(self, which: int, capacity: int, revision: str, other: bool, can: list[str] | None) -> None:  # noqa: FBT001
        """Register one of four nodes: for the first time, over another connection, or with its jobs lost."""
        name = f"worker-{which}"
        same = [one for one in self.plants if one.is_there and one.worker.name == name]
        for one in same:
            one.is_there = True  # the broker will tell it that it is void
        worker = Worker(self.stage, name, "", capacity)
        worker.peer = self.name().encode()
        plant = Plant(worker)
        self.plants.append(plant)
        worker.register(services=[offer(revision=revision, can=can), *([offer("other")] if other else [])])
        self.listen()
        if plant.is_there:
            worker.beat(limit=capacity)
            self.listen()

    @rule(which=WHICH, keeps=st.integers(0, 3))
    def worker_flaps(self, which: int, keeps: int) -> None:
        """Lose a connection and come back at once with some of the jobs."""
        plant = self.plant(which)
        if plant is None:
            return
        self.stage.gone(plant.worker)
        self.listen()
        held = [m.Held(lease, rid, n) for lease, (rid, n, _) in list(plant.jobs.items())[:keeps]]
        plant.worker.come_back(self.name().encode(), held=held)
        self.listen()

    @rule(
        which=WHICH,
        more=st.integers(0, 3),
        phase=st.sampled_from(["ready", "ready", "ready", "loading"]),
        age=st.sampled_from([0, 0, 9000]),
    )
    def beat(self, which: int, more: int, phase: m.Phase, age: int) -> None:
        """Send a heartbeat, with credit."""
        plant = self.plant(which)
        if plant is not None:
            plant.worker.beat(limit=plant.worker.limit + more, phase=phase, loop_age_ms=age)
            self.listen()

    @rule(which=WHICH, lease=st.integers(0, 5), n=st.integers(0, 4), off=st.sampled_from([0, 0, 0, 0, 0, 1, -1]))
    def partial(self, which: int, lease: int, n: int, off: int) -> None:
        """Make units; rarely the wrong ones."""
        found = self.job(which, lease)
        if found is None:
            return
        plant, chosen, job = found
        seq = max(0, job[1] + off)
        plant.worker.partial(chosen, seq, n, units(job[0], seq, n))
        if seq == job[1]:
            job[1] += n
        self.listen()

    @rule(which=WHICH, lease=st.integers(0, 5), off=st.sampled_from([0, 0, 0, 0, 1]))
    def final(self, which: int, lease: int, off: int) -> None:
        """Finish; rarely with a unit that was never sent."""
        found = self.job(which, lease)
        if found is None:
            return
        plant, chosen, job = found
        del plant.jobs[chosen]
        plant.worker.final(chosen, job[1] + off)
        self.listen()

    @rule(which=WHICH, lease=st.integers(0, 5), kind=ERRORS)
    def fail(self, which: int, lease: int, kind: ErrorKind) -> None:
        """Fail."""
        found = self.job(which, lease)
        if found is None:
            return
        plant, chosen, _ = found
        del plant.jobs[chosen]
        from zmqrt.protocol.errors import TABLE

        plant.worker.error(chosen, TABLE[kind].code, kind.value, credit=kind is not ErrorKind.NO_SLOT)
        self.listen()

    @rule(which=WHICH, lease=st.integers(1, 400), epoch=st.integers(0, 3))
    def say_something_old(self, which: int, lease: int, epoch: int) -> None:
        """Send units under a lease or an epoch of long ago."""
        plant = self.plant(which)
        if plant is not None and lease not in plant.jobs:
            plant.worker.send(m.WorkerPartial(epoch, lease, 0, 1, b"old"), m.Credit(epoch, 10**6))
            self.listen()

    @rule(which=WHICH, how=st.sampled_from(["lost", "lost", "leave", "drain"]))
    def worker_leaves(self, which: int, how: str) -> None:
        """Die, leave, or ask to be left alone."""
        plant = self.plant(which)
        if plant is None:
            return
        if how == "lost":
            plant.is_there = False
            self.stage.gone(plant.worker)
        elif how == "leave":
            plant.is_there = False
            plant.worker.send(m.Leave(plant.worker.epoch))
        else:
            plant.worker.send(m.Draining(plant.worker.epoch))
        self.listen()

    # --- the world -------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.05, 0.11, 0.5, 1.1, 2.3, 4.1, 9.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.stage.pass_time(seconds)
        self.listen()

    @rule(which=WHICH, full=st.booleans())
    def sends_fail(self, which: int, full: bool) -> None:  # noqa: FBT001
        """Give back the last things said to a worker: they could not be sent."""
        plant = self.plant(which)
        if plant is None:
            return
        jobs = [
            m.Dispatch(lease, SERVICE, 1, flags, 1, 0, rid, "", b"hi") for lease, (rid, _, flags) in plant.jobs.items()
        ]
        fresh = [one for one in jobs if plant.jobs[one.lease][1] == 0]
        plant.is_there = False
        self.stage.send_failed(plant.worker, fresh, SendFailure.FULL if full else SendFailure.UNREACHABLE)
        self.stage.said.pop((Side.WORKERS, plant.worker.peer), None)
        self.listen()

    @rule(which=WHICH, times=st.integers(1, 8))
    def bad_input(self, which: int, times: int) -> None:
        """Send what cannot be read, perhaps too often."""
        desk = self.desk(which)
        if desk is None:
            return
        for _ in range(times):
            self.stage.broker.bad_input(desk.client.side, desk.client.peer, [BadMessage("nonsense")], self.stage.now)
            self.stage.collect()
        if not self.stage.broker.is_known(Side.CLIENTS, desk.client.peer):
            self.stage.said.pop((Side.CLIENTS, desk.client.peer))
            desk.is_there = False
        self.listen()

    @precondition(lambda self: self.names > 25)
    @rule()
    def drain(self) -> None:
        """Tell the broker to leave."""
        self.stage.broker.drain(self.stage.now)
        self.stage.collect()
        self.listen()

    @invariant()
    def is_consistent(self) -> None:
        """The tables agree with each other after every step."""
        check(self.stage.broker.state)

    def teardown(self) -> None:
        """Once nothing more happens, every request ends and nothing is left behind."""
        for _ in range(30):
            self.stage.pass_time(2.0)
            self.listen()
        for desk in self.desks:
            assert not desk.is_there or not desk.open, "a request without an end"
        snapshot = self.stage.broker.snapshot(self.stage.now)
        assert (snapshot.queued, snapshot.running) == (0, 0)


TestBroker = Model.TestCase
TestBroker.settings = settings(
    max_examples=examples(60),
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
