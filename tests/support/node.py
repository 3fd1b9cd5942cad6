"""A worker core with everything around it played by the test: brokers, engines, the clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.tasks import GenerateChunk, GenerateResult
from zmqrt.protocol.timing import Backoff
from zmqrt.worker import actions as a
from zmqrt.worker.broker_sessions import SessionState
from zmqrt.worker.core import WorkerCore
from zmqrt.worker.device_pool import DevicePool
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import Capacity, EngineStats, ItemResult, TokenEvent
from zmqrt.worker.requests import NodeConfig

M = TypeVar("M")
UUID = b"w" * 16
SERVICE = "toy"
RUN = m.IDEMPOTENT | m.RESUMABLE
STREAM = RUN | m.STREAM
PARAMS = m.Params(
    heartbeat_ms=1000,
    eviction_ms=2000,
    request_timeout_ms=6000,
    max_outstanding=256,
    window_bytes=1 << 20,
)


def rid(number: int) -> bytes:
    """Return a request id."""
    return number.to_bytes(16, "big")


def body(prompt: str = "hi", **fields: Any) -> bytes:
    """Return the body of a generation; a raw prompt of n bytes has n + 1 tokens."""
    return tasks.encode(tasks.Generate(prompt=prompt, raw=True, **fields))


def ids_of(text: str) -> list[int]:
    """Return the tokens that the toy model's text has."""
    return list(text.encode())


class Node:
    """One node under test. `now` moves only when the test says so."""

    def __init__(self, *, brokers: int = 1, devices: int = 1, capacity: int = 100, batch: int = 0) -> None:
        self.now = 100.0
        self.devices = [f"mock:{index}" for index in range(devices)]
        infos = [m.DeviceInfo(name, "mock") for name in self.devices]
        self.fleet = DevicePool(infos, served=SERVICE, batch_max_size=batch, context=0)
        config = NodeConfig(
            worker_uuid=UUID, node_id="n1", capacity=capacity, default_max_tokens=16, stall_s=30.0, ext={}
        )
        endpoints = [(f"tcp://b{index}:1", Backoff(random.Random(index))) for index in range(brokers)]
        self.core = WorkerCore(config, self.fleet, endpoints, self.now)
        self.log: list[a.Action] = []
        self._leases = 1000

    # --- what happens to the node

    def done(self) -> list[a.Action]:
        """End a pass; return everything the node wants done since the last one."""
        self.core.settle(self.now)
        made, self.core.out[:] = list(self.core.out), []
        self.log += made
        return made

    def preprocess(self, action: a.Preprocess) -> None:
        """Do what the agent does for a `Preprocess`."""
        requests = self.core.requests
        requests.prepared(action.job, requests.preprocessor.run(action.dispatch, action.limits), self.now)

    def wait(self, seconds: float) -> list[a.Action]:
        """Let time pass, with every tick that falls due; brokers and engines stay silent."""
        until = self.now + seconds
        made: list[a.Action] = []
        while self.now < until:
            self.now = min(until, max(self.now + 0.01, self.core.next_deadline()))
            self.core.tick(self.now)
            made += self.done()
        return made

    def register(self, broker: int = 0, epoch: int = 1, rebound: Sequence[m.Rebound] = ()) -> list[a.Action]:
        """Dial, shake hands, be welcomed."""
        session = self.core.sessions[broker]
        if session.state is SessionState.DOWN:
            self.now = max(self.now, session.deadline)
            self.core.tick(self.now)
        self.core.connected(broker, self.now)
        welcome = m.WorkerWelcome(f"b{broker}", 7, epoch, PARAMS, list(rebound))
        return self.receive(welcome, broker=broker)

    def load(
        self,
        device: int = 0,
        slots: int = 2,
        *,
        kind: ipc.Kind = "token",
        context: int = 64,
        vocabulary: int = 0,
        can: list[str] | None = None,
        has_keyed_noise: bool = True,
    ) -> list[a.Action]:
        """Let an engine become ready; a moment later, for heartbeats out of turn keep a distance."""
        self.now += 0.25
        service = ipc.EngineService(
            name="",
            kind=kind,
            task="embed" if kind == "batch" else "generate",
            capacity=Capacity(slots=slots, context=context, vocabulary=vocabulary),
            model="toy",
            revision="r1",
            capabilities=can or [],
            has_keyed_noise=has_keyed_noise,
        )
        return self.engine(ipc.EngineReady([service]), device=device)

    def engine(self, *messages: ipc.FromEngine, device: int = 0) -> list[a.Action]:
        """Hear from an engine process."""
        self.core.engine_sent(self.devices[device], messages, self.now)
        return self.done()

    def kill(self, device: int = 0, *, is_restarted: bool = True, reason: str = "killed") -> list[a.Action]:
        """Hear that an engine process has ended; a moment later, as above."""
        self.now += 0.25
        self.core.engine_exited(self.devices[device], reason, is_restarted=is_restarted, now=self.now)
        return self.done()

    def step(self, *events: TokenEvent, device: int = 0, results: Sequence[ItemResult] = ()) -> list[a.Action]:
        """Hear of one step of an engine."""
        return self.engine(ipc.StepReport(list(events), list(results), {"": EngineStats()}), device=device)

    def receive(self, *messages: m.ToWorker, broker: int = 0) -> list[a.Action]:
        """Hear from a broker."""
        self.core.received(broker, messages, self.now)
        return self.done()

    def dispatch(
        self,
        number: int = 1,
        *,
        broker: int = 0,
        lease: int = 0,
        flags: int = STREAM,
        payload: bytes | None = None,
        user: str = "u",
        service: str = SERVICE,
        ttl_ms: int = 6000,
        prefix: Sequence[GenerateChunk] = (),
        attempt: int = 1,
        ext: m.Ext | None = None,
    ) -> list[a.Action]:
        """Hear a dispatch; the lease is the request's number unless given."""
        resume = b"" if not prefix else msgspec.msgpack.encode([tasks.encode(chunk) for chunk in prefix])
        message = m.Dispatch(
            lease=lease or number,
            service=service,
            ttl_ms=ttl_ms,
            flags=flags,
            attempt=attempt,
            resume_n=sum(len(chunk.ids) for chunk in prefix),
            rid=rid(number),
            user=user,
            body=body() if payload is None else payload,
            resume=resume,
            ext={"seed": 5} if ext is None else ext,
        )
        return self.receive(message, broker=broker)

    def ticket(self, number: int = 1, user: str = "u") -> int:
        """Return the ticket under which a request runs, through whichever broker."""
        (job,) = [one for one in self.core.requests.jobs.values() if (one.user, one.rid) == (user, rid(number))]
        return job.ticket

    def check(self) -> None:
        """Check what must hold after every event."""
        core = self.core
        live = {id(job) for job in core.requests.jobs.values()}
        for session in core.sessions:
            assert session.dispatch_limit >= session.received or not session.is_active or session.refused
        for device in core.pool.devices.values():
            for lane in device.lanes.values():
                assert len(lane.running) <= lane.info.capacity.slots
                for ticket, job in lane.running.items():
                    assert job is None or (id(job) in live and job.ticket == ticket and job.device == device.info.id)
        for job in core.requests.jobs.values():
            assert job.state.value != "done"
            assert core.sessions[job.broker].leases.get(job.lease) is job


def sent(made: Sequence[a.Action], kind: type[M], broker: int | None = None) -> list[M]:
    """Return the messages of one kind to brokers."""
    return [
        one.message
        for one in made
        if isinstance(one, a.Send) and isinstance(one.message, kind) and broker in (None, one.broker)
    ]


def submitted(made: Sequence[a.Action], device: str | None = None) -> list[ipc.ToEngine]:
    """Return the messages to engines."""
    return [one.message for one in made if isinstance(one, a.ToEngine) and device in (None, one.device)]


def texts(made: Sequence[a.Action]) -> list[str]:
    """Return the text of each PARTIAL."""
    return ["".join(tasks.decode(one.body, GenerateChunk).text) for one in sent(made, m.WorkerPartial)]


def result(made: Sequence[a.Action]) -> GenerateResult:
    """Return the body of the only FINAL."""
    (final,) = sent(made, m.WorkerFinal)
    return tasks.decode(final.body, GenerateResult)


def serving(**options: int) -> Node:
    """Return a node with one broker and every engine ready."""
    slots = options.pop("slots", 2)
    node = Node(**options)
    node.register()
    for device in range(len(node.devices)):
        node.load(device, slots)
    return node
