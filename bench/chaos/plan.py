"""What is going to be broken, and when: a schedule drawn from a seed. Nothing happens here.

A fault names a kind of victim, not a victim: which node has work worth losing is known only when the time has come.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final


class FaultKind(enum.Enum):
    """The faults there are, by the names that the command line takes: who, and what is done to it."""

    WORKER_KILL = "worker-kill"
    WORKER_FREEZE = "worker-freeze"
    WORKER_PARTITION = "worker-partition"
    WORKER_RESTART = "worker-restart"
    BROKER_KILL = "broker-kill"
    BROKER_FREEZE = "broker-freeze"
    BROKER_RESTART = "broker-restart"

    @property
    def role(self) -> str:
        """Whom it hits: `worker` or `broker`."""
        return self.value.partition("-")[0]

    @property
    def action(self) -> str:
        """What is done: `kill`, `freeze`, `partition` or `restart`."""
        return self.value.partition("-")[2]

    @property
    def lasts(self) -> bool:
        """Whether it goes on until it is undone."""
        return self.action in ("freeze", "partition")


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


@dataclass(frozen=True, kw_only=True)
class ChaosPlan:
    """Everything that makes a run.

    Attributes:
        streams: Requests of this kind that are open at a time; `unary` likewise.
        endpoints: Brokers of a fleet that runs already: it is loaded and judged, and nothing is started or broken.
            `keys`, `insecure` and `model` are for such a fleet.
        least_resumes: Fewer prove nothing; None: one for each fault that cuts streams off.
        least_fenced: The same of fenced results.
    """

    seed: int
    duration_s: float
    faults: Mapping[FaultKind, int]
    streams: int
    unary: int
    clients: int
    timeout_s: float
    max_tokens: int
    brokers: int
    nodes: int
    heartbeat_s: float
    eviction_s: float
    worker_arguments: tuple[str, ...]
    least_resumes: int | None
    least_fenced: int
    endpoints: tuple[str, ...] = ()
    keys: Path | None = None
    insecure: bool = False
    model: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One thing that will be done. `lasts_s` is 0 for what is over at once."""

    at_s: float
    kind: FaultKind
    lasts_s: float = 0.0


def usual_counts(duration_s: float) -> dict[FaultKind, int]:
    """Scale the faults of a minute to another time; each kind comes at least once."""
    return {kind: max(1, round(count * duration_s / 60)) for kind, count in PER_MINUTE.items()}


def make_schedule(
    rng: random.Random, counts: Mapping[FaultKind, int], duration_s: float, eviction_s: float
) -> list[PlannedFault]:
    """Draw when what happens: evenly spread, in random order, each with its own jitter."""
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    begin, length = _QUIET * duration_s, (1 - 2 * _QUIET) * duration_s
    every = length / max(1, len(kinds))
    faults: list[PlannedFault] = []
    for number, kind in enumerate(kinds):
        lasts_s = rng.uniform(*FREEZE_FACTORS) * eviction_s if kind.lasts else 0.0
        faults.append(PlannedFault(begin + every * (number + rng.random()), kind, lasts_s))
    return faults
