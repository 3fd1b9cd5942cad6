"""What is going to be broken, and when: a schedule drawn from a seed. Nothing happens here.

A fault names a kind of victim, not a victim: which node has work worth losing is known only when the time has come.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Target(enum.Enum):
    """Who is broken."""

    WORKER = "worker"
    BROKER = "broker"


class Blow(enum.Enum):
    """How."""

    KILL = "kill -9"
    FREEZE = "freeze"
    PARTITION = "partition"
    RESTART = "restart"


class FaultKind(enum.Enum):
    """The faults there are, by the names that the command line takes."""

    WORKER_KILL = "worker-kill"
    WORKER_FREEZE = "worker-freeze"
    WORKER_PARTITION = "worker-partition"
    WORKER_RESTART = "worker-restart"
    BROKER_KILL = "broker-kill"
    BROKER_FREEZE = "broker-freeze"
    BROKER_RESTART = "broker-restart"

    @property
    def target(self) -> Target:
        """Who is broken by it."""
        return Target.BROKER if self.value.startswith("broker") else Target.WORKER

    @property
    def blow(self) -> Blow:
        """How it is done."""
        return _BLOWS[self.value.partition("-")[2]]


_BLOWS: Final = {"kill": Blow.KILL, "freeze": Blow.FREEZE, "partition": Blow.PARTITION, "restart": Blow.RESTART}

PER_MINUTE: Final[Mapping[FaultKind, int]] = {
    FaultKind.WORKER_KILL: 21,
    FaultKind.WORKER_FREEZE: 6,
    FaultKind.WORKER_PARTITION: 2,
    FaultKind.WORKER_RESTART: 2,
    FaultKind.BROKER_KILL: 6,
    FaultKind.BROKER_FREEZE: 1,
    FaultKind.BROKER_RESTART: 1,
}
"""What one minute brings if nothing else is said."""
FREEZE_FACTORS: Final = (1.2, 1.6)
"""Length of freezes and partitions, in eviction times: beyond the point where the work goes elsewhere."""
_QUIET: Final = 0.05
"""Share of the time left alone at the beginning and at the end: the load is up, and what is broken comes back."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that will be done. `lasts_s` is 0 for what is over at once."""

    at_s: float
    kind: FaultKind
    lasts_s: float = 0.0


def usual_counts(duration_s: float) -> dict[FaultKind, int]:
    """Scale the faults of a minute to another time; each kind comes at least once."""
    return {kind: max(1, round(count * duration_s / 60)) for kind, count in PER_MINUTE.items()}


def make_schedule(
    rng: random.Random, counts: Mapping[FaultKind, int], duration_s: float, eviction_s: float
) -> list[Fault]:
    """Draw when what happens: evenly spread, in random order, each with its own jitter."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    begin, length = _QUIET * duration_s, (1 - 2 * _QUIET) * duration_s
    every = length / max(1, len(kinds))
    faults: list[Fault] = []
    for number, kind in enumerate(kinds):
        lasting = kind.blow in (Blow.FREEZE, Blow.PARTITION)
        lasts_s = rng.uniform(*FREEZE_FACTORS) * eviction_s if lasting else 0.0
        faults.append(Fault(begin + every * (number + rng.random()), kind, lasts_s))
    return faults
