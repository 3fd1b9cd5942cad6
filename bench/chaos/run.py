"""One run: start a fleet, load it, break it by the schedule, let it recover, and judge."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from zmqrt.client.sync import Client
from zmqrt.protocol.errors import ZmqrtError
from zmqrt.worker.engines import mock_tokens

from .display import RunDisplay
from .fleet import ChaosFleet, InjectedFault
from .judge import Judge
from .load import Load
from .plan import ChaosPlan, make_schedule
from .prompts import DrawPrompt, learn, mock_prompts
from .report import COUNTED, ChaosReport

_STEP_S: Final = 0.05
_LEARN_S: Final = 120.0
_RECOVERY_S: Final = 30.0
"""For whoever was killed, restarted or cut off last to be back: a real model takes its time to load."""
_OVERTIME_S: Final = 60.0
"""Faults that find nobody to hit are tried again so long beyond the duration."""


def run(plan: ChaosPlan, display: RunDisplay, interrupts: Callable[[], int]) -> ChaosReport | None:
    """Run to the end; None if it was interrupted before anything was asked. Raises ZmqrtError.

    `interrupts` counts how often somebody asked to stop: after the first nothing more is broken or asked, and what is
    open may finish; after the second it is dropped.
    """

    def go_on() -> bool:
        fleet.step(time.monotonic())
        return not interrupts()

    rng = random.Random(plan.seed)
    with ChaosFleet(plan, rng) as fleet:
        if plan.endpoints:
            fleet.watch()
        else:
            display.phase("starting the fleet")
            if not fleet.start(lambda: not interrupts()):
                return None
        draw = _prompts(fleet.endpoints, plan, rng, display, go_on)
        if draw is None:
            return None
        return _Run(plan, fleet, draw, display, rng).play(interrupts)


def _prompts(
    endpoints: list[str], plan: ChaosPlan, rng: random.Random, display: RunDisplay, go_on: Callable[[], bool]
) -> DrawPrompt | None:
    """Choose how to know the right answers: by arithmetic, or from an undisturbed run."""
    with Client(endpoints, keys=plan.keys, insecure=plan.insecure, name="chaos", timeout_s=_LEARN_S) as client:
        services = client.models()
        able = [service for service in services if service.task == "generate" and plan.model in (None, service.service)]
        names = [service.service for service in able]
        if not able:
            here = [service.service for service in services]
            raise ZmqrtError(f"no model {plan.model or 'for text'} is served; there are: {here}")
        if len(able) > 1:
            raise ZmqrtError(f"name one with --model: {', '.join(names)}")
        if able[0].revision.startswith(mock_tokens.REVISION):
            return mock_prompts(names[0])
        return learn(client, names[0], max_tokens=plan.max_tokens, rng=rng, tell=display.phase, go_on=go_on)


class _Run:
    """A run under way."""

    def __init__(
        self, plan: ChaosPlan, fleet: ChaosFleet, draw: DrawPrompt, display: RunDisplay, rng: random.Random
    ) -> None:
        self._plan = plan
        self._fleet = fleet
        self._display = display
        self._judge = Judge()
        self._load = Load(fleet.endpoints, draw, self._judge, plan)
        schedule = make_schedule(rng, plan.faults, plan.duration_s, plan.eviction_s)
        self._due = {
            role: deque(fault for fault in schedule if fault.kind.role == role) for role in ("worker", "broker")
        }
        self._injected: list[InjectedFault] = []
        self._begun = 0.0

    def play(self, interrupts: Callable[[], int]) -> ChaosReport:
        """Load, break, recover, judge."""
        self._begun = time.monotonic()
        with self._load:
            self._load.start(self._begun)
            self._display.phase("under load")
            while not interrupts() and (self._at_s < self._plan.duration_s or self._is_late()):
                self._inject()
                self._step()
            was_interrupted = bool(interrupts())
            self._display.phase("letting everything finish; Ctrl-C drops it")
            self._load.stop()
            self._fleet.settle()
            give_up_at_s = self._at_s + 2 * self._plan.timeout_s
            while not self._load.has_ended and self._at_s < give_up_at_s and interrupts() < 2:
                self._step()
            missing = self._recover(interrupts)
        _ = self._load.has_ended  # raises what went wrong in it
        return ChaosReport(
            plan=self._plan,
            duration_s=self._at_s,
            judge=self._judge,
            injected=self._injected,
            missed=[] if was_interrupted else [fault for faults in self._due.values() for fault in faults],
            broken=[*self._fleet.died, *missing],
            was_interrupted=was_interrupted,
            counts={name: self._fleet.count(name) for name in COUNTED},
        )

    def _recover(self, interrupts: Callable[[], int]) -> list[str]:
        """Wait until everybody is back at work; return who is not."""
        give_up_at_s = self._at_s + _RECOVERY_S + 2 * self._plan.eviction_s
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

    def _inject(self) -> None:
        for faults in self._due.values():
            if faults and faults[0].at_s <= self._at_s:
                injected = self._fleet.inject(faults[0], time.monotonic(), self._at_s)
                if injected is not None:
                    faults.popleft()
                    self._injected.append(injected)
                    self._judge.note_fault(injected.at_s)
                    self._display.injected(injected)

    def _step(self) -> None:
        self._fleet.step(time.monotonic())
        self._display.progress(self._at_s, self._judge, sum(map(len, self._due.values())))
        _ = self._load.has_ended  # raises what went wrong in it
        time.sleep(_STEP_S)
