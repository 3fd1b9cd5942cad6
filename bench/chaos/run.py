"""One run: start a fleet, load it, break it by the schedule, let it recover, and judge."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from zmqrt.client.sync import Client
from zmqrt.protocol.errors import ZmqrtError
from zmqrt.protocol.snapshot import ServiceStatus
from zmqrt.worker.engines import mock_tokens

from .fleet import ChaosFleet, FleetPlan, Struck
from .judge import Judge
from .load import Load, LoadPlan
from .plan import Fault, FaultKind, Target, make_schedule
from .questions import Source, ToyQuestions, learn
from .report import COUNTED, Demands, Report

_STEP_S: Final = 0.05
_LEARN_S: Final = 120.0
_RECOVERY_S: Final = 30.0
"""For whoever was killed, restarted or cut off last to be back: a real model takes its time to load."""
_OVERTIME_S: Final = 60.0
"""Faults that find nobody to strike are tried again so long beyond the duration."""


@dataclass(frozen=True, kw_only=True)
class ChaosPlan:
    """Everything that makes a run. With `brokers`, a fleet that is there already is loaded, and not broken."""

    seed: int
    duration_s: float
    load: LoadPlan
    fleet: FleetPlan
    faults: Mapping[FaultKind, int]
    demands: Demands
    max_tokens: int
    brokers: tuple[str, ...] = ()
    model: str | None = None


class Watcher(Protocol):
    """Who is told how a run goes."""

    def phase(self, words: str) -> None:
        """Hear what is being done now."""
        ...

    def struck(self, struck: Struck) -> None:
        """Hear of a fault."""
        ...

    def progress(self, at_s: float, judge: Judge, faults_left: int) -> None:
        """Hear how far it is, some times a second."""
        ...


def run(plan: ChaosPlan, watcher: Watcher, interrupts: Callable[[], int]) -> Report | None:
    """Run to the end; None if it was interrupted before anything was asked. Raises ZmqrtError.

    `interrupts` counts how often somebody asked to stop: after the first nothing more is broken or asked, and what is
    open may finish; after the second it is dropped.
    """

    def go_on() -> bool:
        return not interrupts()

    rng = random.Random(plan.seed)
    with ChaosFleet(plan.fleet, rng) as fleet:
        if not plan.brokers:
            watcher.phase("starting the fleet")
            if not fleet.start(go_on):
                return None
        else:
            fleet.watch(plan.brokers)
        endpoints = list(plan.brokers) or fleet.endpoints

        def keep() -> bool:
            fleet.step(time.monotonic())
            return go_on()

        source = _source(endpoints, plan, rng, watcher, keep)
        if source is None:
            return None
        return _Run(plan, fleet, endpoints, source, watcher=watcher, rng=rng).play(interrupts)


def _source(
    endpoints: Sequence[str], plan: ChaosPlan, rng: random.Random, watcher: Watcher, go_on: Callable[[], bool]
) -> Source | None:
    """Choose how to know the right answers: by arithmetic, or from an undisturbed run."""
    load = plan.load
    with Client(endpoints, keys=load.keys, insecure=load.insecure, name="chaos", timeout_s=_LEARN_S) as client:
        service = _choose(client.models(), plan.model)
        if service.revision.startswith(mock_tokens.REVISION):
            return ToyQuestions(service.service)
        return learn(client, service.service, max_tokens=plan.max_tokens, rng=rng, tell=watcher.phase, go_on=go_on)


def _choose(services: Sequence[ServiceStatus], name: str | None) -> ServiceStatus:
    able = [one for one in services if one.task == "generate" and name in (None, one.service)]
    if not able:
        raise ZmqrtError(f"no model {name or 'for text'} is served; there are: {[one.service for one in services]}")
    if len(able) > 1:
        raise ZmqrtError(f"name one with --model: {', '.join(one.service for one in able)}")
    return able[0]


class _Run:
    """A run under way."""

    def __init__(
        self,
        plan: ChaosPlan,
        fleet: ChaosFleet,
        endpoints: Sequence[str],
        source: Source,
        *,
        watcher: Watcher,
        rng: random.Random,
    ) -> None:
        self._plan = plan
        self._fleet = fleet
        self._watcher = watcher
        self._judge = Judge()
        self._load = Load(endpoints, source, self._judge, plan.load)
        schedule = make_schedule(rng, plan.faults, plan.duration_s, plan.fleet.eviction_s)
        self._due = {target: deque(f for f in schedule if f.kind.target is target) for target in Target}
        self._struck: list[Struck] = []
        self._begun = 0.0

    def play(self, interrupts: Callable[[], int]) -> Report:
        """Load, break, recover, judge."""
        self._begun = time.monotonic()
        with self._load:
            self._load.start(self._begun)
            self._watcher.phase("under load")
            while not interrupts() and (self._at_s < self._plan.duration_s or self._is_late()):
                self._break()
                self._step()
            was_interrupted = bool(interrupts())
            self._watcher.phase("letting everything finish; Ctrl-C drops it")
            self._load.stop()
            self._fleet.settle()
            give_up_at_s = self._at_s + 2 * self._plan.load.timeout_s
            while not self._load.has_ended and self._at_s < give_up_at_s and interrupts() < 2:
                self._step()
            missing = self._recover(interrupts)
        _ = self._load.has_ended  # raises what went wrong in it
        return self._report(missing, was_interrupted=was_interrupted)

    def _recover(self, interrupts: Callable[[], int]) -> list[str]:
        """Wait until everybody is back at work; return who is not."""
        give_up_at_s = self._at_s + _RECOVERY_S + 2 * self._plan.fleet.eviction_s
        while self._fleet.missing() and self._at_s < give_up_at_s and interrupts() < 2:
            self._step()
        self._fleet.step(time.monotonic())
        return self._fleet.missing()

    @property
    def _at_s(self) -> float:
        return time.monotonic() - self._begun

    def _is_late(self) -> bool:
        """Whether faults are left that may still find a victim."""
        return any(self._due.values()) and self._at_s < self._plan.duration_s + _OVERTIME_S

    def _break(self) -> None:
        for faults in self._due.values():
            if faults and faults[0].at_s <= self._at_s:
                struck = self._fleet.strike(faults[0], time.monotonic(), self._at_s)
                if struck is not None:
                    faults.popleft()
                    self._struck.append(struck)
                    self._judge.strike(struck.at_s)
                    self._watcher.struck(struck)

    def _step(self) -> None:
        self._fleet.step(time.monotonic())
        self._watcher.progress(self._at_s, self._judge, sum(map(len, self._due.values())))
        _ = self._load.has_ended  # raises what went wrong in it
        time.sleep(_STEP_S)

    def _report(self, missing: list[str], *, was_interrupted: bool) -> Report:
        plan = self._plan
        left: list[Fault] = [fault for faults in self._due.values() for fault in faults]
        timers = (
            "the fleet's own"
            if plan.brokers
            else f"heartbeat {plan.fleet.heartbeat_s:g} s, eviction {plan.fleet.eviction_s:g} s, lost 1 s"
        )
        load = plan.load
        return Report(
            seed=plan.seed,
            duration_s=self._at_s,
            load=f"{load.streams} streams and {load.unary} unary at a time, {load.clients} clients",
            timers=timers,
            judge=self._judge,
            struck=self._struck,
            missed=[] if was_interrupted else left,
            broken=[*self._fleet.died, *missing],
            was_interrupted=was_interrupted,
            counts={name: self._fleet.count(name) for name in COUNTED},
            demands=plan.demands,
        )
