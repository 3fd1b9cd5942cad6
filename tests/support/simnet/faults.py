"""What goes wrong, and when: kills, freezes, partitions, broken connections, crashed and hanging engines, drains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from .broker import BrokerProcess
from .client import ClientProcess
from .process import Process
from .wire import Wire
from .worker import WorkerProcess

if TYPE_CHECKING:
    from .world import World

_FREEZES_S: Final = (0.3, 1.4, 2.6, 4.5, 9.0)
"""Around SUSPECT, EVICTED, REMOVED and the time-out of ZMTP heartbeats of the timing in use."""
COUNTED: Final = {
    "resumes": "resumes",
    "late_reply": "fences",
    "nodes_evicted": "evictions",
    "leases_rebound": "rebound leases",
    "redispatches": "redispatches",
    "refused_by_node": "refusals",
    "slow_readers": "slow subscribers",
    "replays": "replays",
    "twins": "twins",
    "superseded": "superseded",
    "poisoned": "poisoned",
}
"""Counters of the broker, and what the totals call them."""


class Faults:
    """Plans faults, causes them, and undoes them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._is_over = False

    def plan(self) -> None:
        """Draw them all."""
        rng, agenda = self._world.rng, self._world.agenda
        kinds: list[tuple[int, Callable[[], None]]] = [
            (4, self._kill_worker),
            (3, self._kill_broker),
            (1, self._kill_client),
            (4, self._freeze),
            (4, self._cut),
            (2, self._partition),
            (3, self._crash_engine),
            (1, self._hang_engine),
            (1, self._drain_worker),
            (1, self._drain_broker),
        ]
        weights = [weight for weight, _ in kinds]
        for _, fault in rng.choices(kinds, weights, k=self._world.plan.faults):
            agenda.after(rng.uniform(0.2, self._world.plan.faulty_s), fault)

    def stop(self) -> None:
        """End all that goes wrong: everything that stood still goes on, everything that died is there again."""
        self._is_over = True
        world = self._world
        world.partitions.clear()
        for wire in list(world.wires()):
            wire.release()
        for process in list(world.processes()):
            process.thaw()
        for process in list(world.processes()):
            self._restart(process)

    # --- processes ---------------------------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        self._kill(self._world.rng.choice(self._world.workers))

    def _kill_broker(self) -> None:
        self._kill(self._world.rng.choice(self._world.brokers))

    def _kill_client(self) -> None:
        self._kill(self._world.rng.choice(self._world.clients))

    def _kill(self, process: Process) -> None:
        if not self._is_over:
            process.kill()
            self._later(self._world.rng.uniform(0.05, 3.0), lambda: self._restart(process))

    def _restart(self, process: Process) -> None:
        """Start another process in the place of one that is gone."""
        if process.is_up:
            return
        world = self._world
        match process:
            case BrokerProcess() if process in world.brokers:
                self.count(process)
                world.brokers[world.brokers.index(process)] = BrokerProcess(world, process.host, world.plan.bounds)
            case WorkerProcess() if process in world.workers:
                world.workers[world.workers.index(process)] = WorkerProcess(world, process.host)
            case ClientProcess() if process in world.clients:
                world.clients[world.clients.index(process)] = ClientProcess(world, process.host)
            case _:
                pass

    def _freeze(self) -> None:
        world = self._world
        process = world.rng.choice([*world.brokers, *world.workers, *world.workers, *world.clients])
        if process.is_up and not process.is_frozen and not self._is_over:
            process.freeze()
            self._later(world.rng.choice(_FREEZES_S), process.thaw)

    def _drain_worker(self) -> None:
        worker = self._world.rng.choice(self._world.workers)
        worker.call(worker.drain)
        self._restart_when_gone(worker)

    def _drain_broker(self) -> None:
        broker = self._world.rng.choice(self._world.brokers)
        broker.call(broker.drain)
        self._restart_when_gone(broker)

    def _restart_when_gone(self, process: Process) -> None:
        """Look again and again: it leaves when its requests are done, which may be after the faults."""
        if process.is_up:
            self._world.agenda.after(0.2, lambda: self._restart_when_gone(process))
        else:
            self._restart(process)

    # --- engines and connections -------------------------------------------------------------------------------------

    def _crash_engine(self) -> None:
        worker = self._world.rng.choice(self._world.workers)
        self._world.rng.choice(list(worker.engines.values())).crash()

    def _hang_engine(self) -> None:
        worker = self._world.rng.choice(self._world.workers)
        self._world.rng.choice(list(worker.engines.values())).is_hanging = True

    def _cut(self) -> None:
        wires = self._world.wires()
        if wires:
            wire = self._world.rng.choice(wires)
            is_half_open = self._world.rng.random() < 0.4
            self._world.agenda.note("fault", f"cut {wire.peer.decode()} half_open={is_half_open}")
            wire.cut(half_open=is_half_open)

    def _partition(self) -> None:
        """Let nothing through between a broker and somebody, or everybody."""
        world = self._world
        broker = world.rng.choice(world.brokers)
        others = [*world.workers, *world.clients]
        chosen = others if world.rng.random() < 0.3 else [world.rng.choice(others)]
        pairs = [frozenset((broker.host, one.host)) for one in chosen]
        world.partitions.update(pairs)
        world.agenda.note("fault", f"partition {[sorted(pair) for pair in pairs]}")
        for wire in world.wires():
            if wire.is_blocked:
                world.agenda.after(world.zmtp_s(wire.side), partial(_time_out_if_blocked, wire))
        self._later(world.rng.choice(_FREEZES_S), lambda: self._heal(pairs))

    def _heal(self, pairs: list[frozenset[str]]) -> None:
        self._world.partitions.difference_update(pairs)
        for wire in list(self._world.wires()):
            if not wire.is_blocked:
                wire.release()

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        self._world.agenda.after(seconds, undo)

    # --- totals ------------------------------------------------------------------------------------------------------

    def count(self, broker: BrokerProcess) -> None:
        """Add up what a broker has counted; once, when it is gone or at the end."""
        for name, total in COUNTED.items():
            self._world.totals[total] += getattr(broker.state.counters, name)


def _time_out_if_blocked(wire: Wire) -> None:
    if wire.is_blocked:
        wire.time_out()
