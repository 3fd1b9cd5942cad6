"""A node: the real worker core over simulated connections, with toy engines on the virtual clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never, cast

from zmqrt.broker.core import Side
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Backoff
from zmqrt.worker import actions as a
from zmqrt.worker.core import WorkerCore, WorkerState
from zmqrt.worker.device_pool import DevicePool
from zmqrt.worker.engines import ipc
from zmqrt.worker.preprocess import Preprocessor
from zmqrt.worker.requests import NodeConfig

from .engine import SERVICE, ToyEngine
from .process import Process
from .wire import Closed, Envelope, Greeting, Item, Wire

if TYPE_CHECKING:
    from .world import World


class _Preprocessor(Preprocessor):
    """Takes one request in ten for long, by chance: its result comes in a later pass, or too late."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def is_long(self, dispatch: m.Dispatch) -> bool:
        return self._rng.random() >= 0.9


class WorkerProcess(Process):
    """One node with all its engine processes, which die with it."""

    def __init__(self, world: World, host: str) -> None:
        super().__init__(world, host)
        rng = random.Random(world.rng.getrandbits(64))
        devices = [f"mock:{index}" for index in range(world.plan.devices)]
        infos = [m.DeviceInfo(name, "mock") for name in devices]
        self.fleet = DevicePool(infos, served=SERVICE, batch_max_size=world.plan.batch, context=0)
        config = NodeConfig(
            worker_uuid=rng.randbytes(16),
            node_id=host,
            capacity=world.plan.capacity,
            default_max_tokens=16,
            stall_s=world.timing.request_timeout_s / 2,
            held_s=world.timing.lost_grace_s + 1.0,
            ext={"proof": f"{host} alone"},
            jitter=lambda: rng.uniform(0.9, 1.1),
        )
        self._brokers = [broker.host for broker in world.brokers]
        self.core = WorkerCore(config, self.fleet, [(host, Backoff(rng)) for host in self._brokers], self.agenda.now)
        self.core.requests.preprocessor = _Preprocessor(world.rng)
        self._wires: dict[int, Wire] = {}
        self.engines = {name: ToyEngine(self, name, rng) for name in devices}
        for engine in self.engines.values():
            engine.load()
        self.call(lambda: None)

    # --- in ----------------------------------------------------------------------------------------------------------

    def take(self, wire: Wire, item: Item) -> None:
        """Give the core what a broker sent, unless the connection was given up."""
        index = self._brokers.index(wire.listener.host)
        if self._wires.get(index) is not wire:
            return
        match item:
            case Greeting():
                self.core.connected(index, self.agenda.now)
            case Closed():
                self.core.lost(index, "the connection is gone", self.agenda.now)
            case Envelope(messages):
                self.core.received(index, cast("Sequence[m.ToWorker]", messages), self.agenda.now)

    def tick(self) -> None:
        """Let the core act."""
        self.core.tick(self.agenda.now)

    def due(self) -> float:
        """Ask the core."""
        return self.core.next_deadline()

    def drain(self) -> None:
        """SIGTERM."""
        self.core.drain(self.world.timing.drain_s / 2, "told to", self.agenda.now)

    # --- out ---------------------------------------------------------------------------------------------------------

    def finish_pass(self) -> None:
        """Carry out what the core wants, in the order of the agent."""
        self.core.settle(self.agenda.now)
        to_brokers: dict[int, list[m.Message]] = {}
        to_engines: dict[str, list[ipc.ToEngine]] = {}
        for action in self.core.out:
            if isinstance(action, a.Send):
                to_brokers.setdefault(action.broker, []).append(action.message)
            elif isinstance(action, a.ToEngine):
                to_engines.setdefault(action.device, []).append(action.message)
            else:
                if isinstance(action, a.HangUp):
                    to_brokers.pop(action.broker, None)
                self._obey(action)
        self.core.out.clear()
        for device, messages in to_engines.items():
            self.engines[device].receive(messages)
        for broker, said in to_brokers.items():
            if broker in self._wires:
                self._wires[broker].send(self, said)
        check_worker(self.core)
        if self.core.state is WorkerState.GONE:
            self._leave()

    def _obey(
        self, action: a.Dial | a.HangUp | a.ProbeBroker | a.Preprocess | a.RestartEngine | a.Exit | a.Note
    ) -> None:
        match action:
            case a.Preprocess():
                self._preprocess(action)
            case a.Dial(broker):
                self._dial(broker)
            case a.HangUp(broker):
                self._hang_up(broker)
            case a.RestartEngine(device, reason):
                self.agenda.note(self.name, reason)
                self.agenda.after(0.001, self.engines[device].crash)
            case a.ProbeBroker():
                pass  # nobody here reads why
            case a.Note():
                self.agenda.note(self.name, action.text)
            case a.Exit():
                pass  # the core is GONE: see above
            case _:
                assert_never(action)

    def _preprocess(self, action: a.Preprocess) -> None:
        """Do it on another thread."""
        requests = self.core.requests
        result = requests.preprocessor.run(action.dispatch, action.limits)

        def prepared() -> None:
            if self.core.state is not WorkerState.GONE:
                requests.prepared(action.job, result, self.agenda.now)

        self.agenda.after(self.world.rng.uniform(0.0, 0.05), lambda: self.call(prepared))

    def _dial(self, broker: int) -> None:
        wire = self._wires[broker] = self.world.dial(self, broker, Side.WORKERS)
        if not wire.is_cut:
            wire.greet(self)

    def _hang_up(self, broker: int) -> None:
        wire = self._wires.pop(broker, None)
        if wire is not None:
            wire.close(self)

    def _leave(self) -> None:
        self.is_up = False
        self.agenda.note(self.name, "left")
        for wire in self.world.wires_of(self):
            wire.close(self)

    def said(self, device: str, messages: list[ipc.FromEngine]) -> None:
        """Hear from an engine process."""
        self.call(lambda: self.core.engine_sent(device, messages, self.agenda.now))

    # --- at the end --------------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether no request is here, finished ones included."""
        return not self.core.requests.jobs and not any(session.leases for session in self.core.sessions)

    def check_empty(self) -> None:
        """Check that nothing of any request is left."""
        assert not self.core.requests.jobs, self.core.requests.jobs
        assert not self.core.requests.scheduler.waiting
        for session in self.core.sessions:
            assert not session.leases, session.leases
        for engine in self.engines.values():
            engine.check_empty()
        for device in self.fleet.devices.values():
            for lane in device.lanes.values():
                assert not lane.running, lane.running


def check_worker(core: WorkerCore) -> None:
    """Check what must hold in a node after every pass."""
    jobs = core.requests.jobs
    for key, job in jobs.items():
        assert job.key == key
        assert job.state.value != "done"
        assert core.sessions[job.broker].leases.get(job.lease) is job
    for device in core.pool.devices.values():
        for lane in device.lanes.values():
            assert len(lane.running) <= lane.info.capacity.slots
            for ticket, running in lane.running.items():
                assert running is None or (jobs.get(running.key) is running and running.ticket == ticket)
