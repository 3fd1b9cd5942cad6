"""A fleet that may be broken: brokers and workers as supervised children, and proxies between them.

It knows how to kill, freeze, cut off and restart a process, how to undo that, and whose turn it may be: never so many
at a time that nobody is left to go on.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from zmqrt.client.cli.poller import Poller
from zmqrt.client.cli.supervise import Child, ChildState, Supervisor
from zmqrt.client.config import ClientSettings
from zmqrt.protocol.errors import ZmqrtError
from zmqrt.protocol.snapshot import NodeStatus, Snapshot

from .plan import ChaosPlan, FaultKind, PlannedFault
from .proxy import FaultProxy

_START_S: Final = 600.0
"""Loading a real model takes a while."""
_RESTART_S: Final = 1.5
"""A killed process is away for up to so long, as under any supervisor."""
_DRAIN_S: Final = 5.0
_POLL_S: Final = 0.2


@dataclass(eq=False)
class Member:
    """One process of the fleet that may become a victim. `poller` looks at a broker; `proxies` lead to the brokers."""

    child: Child
    role: str
    poller: Poller | None = None
    proxies: list[FaultProxy] = field(default_factory=list[FaultProxy])
    is_disturbed: bool = False
    is_leaving: bool = False

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.child.name

    @property
    def snapshot(self) -> Snapshot | None:
        """What this broker last reported, if it runs undisturbed."""
        if self.poller is None or self.is_disturbed or self.child.state is not ChildState.READY:
            return None
        return self.poller.snapshot


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault that was injected: into whom, and how many requests it had at that moment."""

    at_s: float
    fault: PlannedFault
    victim: str
    open_requests: int


class ChaosFleet:
    """The fleet. Leaving the `with` block ends every process of it."""

    def __init__(self, plan: ChaosPlan, rng: random.Random) -> None:
        self._plan = plan
        self._rng = rng
        self._exits = contextlib.ExitStack()
        self._supervisor = Supervisor(_ignore, self._ended)
        self.brokers: list[Member] = []
        self.workers: list[Member] = []
        self.died: list[str] = []
        """Processes that ended though nothing was done to them."""
        self._pollers: list[Poller] = []
        self._counters: dict[int, dict[str, int]] = {}
        self._before: dict[int, dict[str, int]] = {}
        """By poller: what the broker that it found first had counted by then."""
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def __enter__(self) -> Self:
        self._exits.enter_context(self._supervisor)
        return self

    def __exit__(self, *_: object) -> None:
        with self._exits:
            self.settle()

    # --- start -------------------------------------------------------------------------------------------------------

    def start(self, go_on: Callable[[], bool]) -> bool:
        """Start everything and wait until all of it serves; False if `go_on` said to stop. Raises ZmqrtError."""
        for number in range(self._plan.brokers):
            name = f"broker-{number}"
            child = Child(name, "zmqrt.broker", self._broker(name, 0, 0), most_delay_s=_RESTART_S)
            self.brokers.append(Member(self._supervisor.add(child), "broker"))
        if not self._wait(lambda: all(member.child.endpoints for member in self.brokers), go_on):
            return False
        for member in self.brokers:
            endpoints = member.child.endpoints
            # Started anew, it has to come back where the others look for it.
            ports = (int(endpoints[side].rpartition(":")[2]) for side in ("clients", "workers"))
            member.child.arguments = self._broker(member.name, *ports)
            member.poller = self._exits.enter_context(Poller(endpoints["clients"], ClientSettings(), every_s=_POLL_S))
        for number in range(self._plan.nodes):
            self.workers.append(self._start_worker(f"node-{number}"))
        return self._wait(self.is_whole, go_on)

    def watch(self) -> None:
        """Only look at a fleet that runs already; what its brokers have counted before is none of ours."""
        for endpoint in self._plan.endpoints:
            settings = ClientSettings(keys=self._plan.keys, insecure=self._plan.insecure)
            self._pollers.append(self._exits.enter_context(Poller(endpoint, settings, every_s=_POLL_S)))

    @property
    def endpoints(self) -> list[str]:
        """Where clients connect."""
        return list(self._plan.endpoints) or [member.child.endpoints["clients"] for member in self.brokers]

    def _broker(self, name: str, clients: int, workers: int) -> list[str]:
        plan = self._plan
        return [
            *("--broker-id", name),
            *("--clients", f"tcp://127.0.0.1:{clients}", "--workers", f"tcp://127.0.0.1:{workers}"),
            *("--heartbeat-interval", str(plan.heartbeat_s), "--node-eviction-timeout", str(plan.eviction_s)),
            *("--log-format", "json", "--log-level", "error"),
        ]

    def _start_worker(self, name: str) -> Member:
        direct = [member.child.endpoints["workers"] for member in self.brokers]
        proxies: list[FaultProxy] = []
        if self._plan.faults.get(FaultKind.WORKER_PARTITION):
            proxies = [self._exits.enter_context(FaultProxy(endpoint)) for endpoint in direct]
        brokers = [proxy.endpoint for proxy in proxies] or direct
        arguments = [
            *("--broker", ",".join(brokers), "--node-id", name, "--drain-timeout", str(_DRAIN_S)),
            *("--log-format", "json", "--log-level", "error", *self._plan.worker_arguments),
        ]
        child = Child(name, "zmqrt.worker", arguments, most_delay_s=_RESTART_S)
        return Member(self._supervisor.add(child), "worker", proxies=proxies)

    def _wait(self, has_come: Callable[[], bool], go_on: Callable[[], bool]) -> bool:
        give_up_at = time.monotonic() + _START_S
        while not has_come():
            self.step(time.monotonic())
            for snapshot in self._snapshots():
                for node in snapshot.nodes:
                    if node.phase == "failed":
                        raise ZmqrtError(f"{node.node_id} cannot serve: {self._last_words(node.node_id)}")
            if time.monotonic() > give_up_at:
                raise ZmqrtError(f"the fleet did not come up within {_START_S:.0f} s")
            if not go_on():
                return False
            time.sleep(_POLL_S / 4)
        return True

    # --- state -------------------------------------------------------------------------------------------------------

    def is_whole(self) -> bool:
        """Say whether every broker sees every node at work."""
        names = {member.name for member in self.workers}
        seen = [{node.node_id for node in _serving(snapshot)} for snapshot in self._snapshots()]
        return len(seen) == len(self.brokers) and all(names <= serving for serving in seen)

    def missing(self) -> list[str]:
        """Say of each process that is not back at work what is the matter with it."""
        names = {member.name for member in self.workers}
        found: list[str] = []
        for member in (*self.brokers, *self.workers):
            if member.is_leaving:
                found.append(f"{member.name} was asked to leave and is still there")
            elif member.child.state is not ChildState.READY:
                found.append(f"{member.name} did not come back: {member.child.state.value}")
            elif member.role == "broker":
                seen = {node.node_id for node in _serving(member.snapshot)} if member.snapshot else set[str]()
                found += [f"{name} is not back at {member.name}" for name in sorted(names - seen)]
        return found

    def step(self, now: float) -> None:
        """Supervise, undo what has lasted long enough, and note what the brokers count. Raises ChildFailedError."""
        self._supervisor.step()
        while self._undo and self._undo[0][0] <= now:
            heapq.heappop(self._undo)[2]()
        for snapshot in self._snapshots():
            self._counters[snapshot.broker_epoch] = snapshot.counters
        for poller in self._pollers:
            if poller.snapshot is not None:
                self._before.setdefault(id(poller), poller.snapshot.counters)
                self._counters[poller.snapshot.broker_epoch] = poller.snapshot.counters

    def count(self, name: str) -> int:
        """Return what was counted by all brokers there have been, each as it was last seen."""
        before = sum(counters.get(name, 0) for counters in self._before.values())
        return sum(counters.get(name, 0) for counters in self._counters.values()) - before

    def _snapshots(self) -> list[Snapshot]:
        return [snapshot for member in self.brokers if (snapshot := member.snapshot) is not None]

    def _requests_of(self, member: Member) -> int:
        if member.role == "broker":
            snapshot = member.snapshot
            return snapshot.running + snapshot.queued if snapshot is not None else 0
        return sum(
            node.in_flight for snapshot in self._snapshots() for node in snapshot.nodes if node.node_id == member.name
        )

    def _is_well(self, member: Member) -> bool:
        if member.is_disturbed or member.child.state is not ChildState.READY:
            return False
        if member.role == "broker":
            return member.snapshot is not None and bool(_serving(member.snapshot))
        return any(node.node_id == member.name for snapshot in self._snapshots() for node in _serving(snapshot))

    def _last_words(self, name: str) -> str:
        return (
            next((worker.child.last_words() for worker in self.workers if worker.name == name), "")
            or "it gives no reason"
        )

    # --- faults ------------------------------------------------------------------------------------------------------

    def inject(self, fault: PlannedFault, now: float, at_s: float) -> InjectedFault | None:
        """Do it to somebody with work to lose; None if nobody may be hit now."""
        members = self.brokers if fault.kind.role == "broker" else self.workers
        well = [member for member in members if self._is_well(member)]
        # Half of them stay, rounded down; a single one may always go.
        if len(members) - len(well) >= max(1, len(members) // 2):
            return None
        able = [(member, count) for member in well if (count := self._requests_of(member))]
        if not able:
            return None
        # Whoever has more to lose is hit more often.
        victim, open_requests = self._rng.choices(able, [count for _, count in able])[0]
        victim.is_disturbed = True
        self._hit(victim, fault, now)
        return InjectedFault(at_s, fault, victim.name, open_requests)

    def _hit(self, victim: Member, fault: PlannedFault, now: float) -> None:
        pid = victim.child.pid
        assert pid is not None
        if sys.platform == "win32":
            raise NotImplementedError("the command refuses to start there")
        match fault.kind.action:
            case "kill":
                os.kill(pid, signal.SIGKILL)
            case "restart":
                victim.is_leaving = True
                victim.child.drain()
            case "freeze":
                os.killpg(pid, signal.SIGSTOP)
                self._later(now + fault.lasts_s, lambda: self._thaw(victim))
            case _:
                for proxy in victim.proxies:
                    proxy.freeze()
                self._later(now + fault.lasts_s, lambda: self._join(victim))

    def settle(self) -> None:
        """End all that lasts: everybody may come back."""
        while self._undo:
            heapq.heappop(self._undo)[2]()

    def _later(self, when: float, undo: Callable[[], None]) -> None:
        heapq.heappush(self._undo, (when, next(self._order), undo))

    def _thaw(self, victim: Member) -> None:
        if victim.child.pid is not None and sys.platform != "win32":
            with contextlib.suppress(OSError):
                os.killpg(victim.child.pid, signal.SIGCONT)
        victim.is_disturbed = False

    def _join(self, victim: Member) -> None:
        for proxy in victim.proxies:
            proxy.thaw()
        victim.is_disturbed = False

    def _ended(self, child: Child, why: str) -> None:
        member = next(member for member in (*self.brokers, *self.workers) if member.child is child)
        if not member.is_disturbed:
            self.died.append(f"{child.name} ended by itself: {why}")
        elif member.is_leaving and child.exit_code:
            self.died.append(f"{child.name} was asked to leave and did not end well: {why}")
        if member.poller is not None:
            member.poller.snapshot = None  # of the process that is gone
        member.is_disturbed = member.is_leaving = False


def _serving(snapshot: Snapshot) -> Sequence[NodeStatus]:
    return [node for node in snapshot.nodes if node.health == "active" and node.phase == "ready" and node.capacity]


def _ignore(_child: Child, _record: dict[str, Any]) -> None:
    """Show no reports of the roles: a fleet that is being broken complains all the time."""
