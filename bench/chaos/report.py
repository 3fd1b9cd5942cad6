"""What a run showed: the verdict, the tables for people, the record for programs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .fleet import InjectedFault
from .judge import Judge
from .plan import ChaosPlan, FaultKind, PlannedFault

COUNTED: Final = {
    "resumes": "resumes",
    "late_reply": "fenced results",
    "redispatches": "dispatched again",
    "nodes_lost": "nodes lost",
    "nodes_evicted": "nodes evicted",
    "leases_rebound": "leases rebound",
}
"""Counters of the brokers, and what they are called here."""
_CUTTING: Final = (FaultKind.WORKER_KILL, FaultKind.WORKER_FREEZE, FaultKind.WORKER_PARTITION)
"""Faults after which streams go on elsewhere."""


@dataclass(frozen=True, kw_only=True)
class ChaosReport:
    """A run that is over.

    Attributes:
        missed: Faults that found nobody to hit.
        broken: What is wrong with processes, in words.
        counts: What the brokers counted, by the names of `COUNTED`.
    """

    plan: ChaosPlan
    duration_s: float
    judge: Judge
    injected: Sequence[InjectedFault]
    missed: Sequence[PlannedFault]
    broken: Sequence[str]
    was_interrupted: bool
    counts: dict[str, int]

    def problems(self) -> list[str]:
        """Return why this run is a failure; empty if it is none."""
        judge = self.judge
        found: list[str] = []
        unaccounted = judge.requests - judge.answered - judge.lost
        if unaccounted:
            found.append(f"{unaccounted} requests have neither an answer nor an error")
        if judge.lost:
            kinds = ", ".join(f"{count} {kind}" for kind, count in judge.errors.most_common())
            found.append(f"{judge.lost} requests lost ({kinds})")
        if judge.doubled:
            found.append(f"{judge.doubled} answers with tokens that came twice")
        if judge.wrong:
            found.append(f"{judge.wrong} wrong answers")
        if not judge.requests:
            found.append("nothing was asked")
        found += self.broken
        for kind, count in Counter(fault.kind for fault in self.missed).items():
            found.append(f"{count} {kind.value} found nobody to hit: fewer faults, more nodes, or more time")
        return found if self.was_interrupted else found + self._shortcomings()

    def _shortcomings(self) -> list[str]:
        """Say what was too little for the run to prove anything."""
        cutting = sum(injected.fault.kind in _CUTTING for injected in self.injected) if self.judge.streams else 0
        resumes = self.plan.least_resumes
        least = {"resumes": cutting if resumes is None else resumes, "late_reply": self.plan.least_fenced}
        return [
            f"only {self.counts[name]} {COUNTED[name]}, {count} are the least that proves anything"
            for name, count in least.items()
            if self.counts[name] < count
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        judge = self.judge
        return {
            "seed": self.plan.seed,
            "duration_s": self.duration_s,
            "requests": judge.requests,
            "answered": judge.answered,
            "lost": judge.lost,
            "duplicated": judge.doubled,
            "wrong": judge.wrong,
            "tokens": judge.tokens,
            "longest_gap_s": judge.longest_gap_s,
            "counts": self.counts,
            "faults": [
                {
                    "at_s": injected.at_s,
                    "kind": injected.fault.kind.value,
                    "victim": injected.victim,
                    "open": injected.open_requests,
                    "lasts_s": injected.fault.lasts_s,
                    "longest_gap_s": gap_s,
                }
                for injected, gap_s in zip(self.injected, judge.gaps_s, strict=True)
            ],
            "problems": self.problems(),
            "complaints": judge.complaints,
        }

    def render(self) -> RenderableType:
        """Draw it for people, who have seen each fault go by."""
        return Group(self._faults(), self._requests(), *self._verdict())

    def _faults(self) -> Table:
        table = Table(title=f"Faults of seed {self.plan.seed}", title_justify="left")
        for name in ("fault", "times", "open on victims", "longest gap"):
            table.add_column(name, justify="left" if name == "fault" else "right")
        hits = list(zip(self.injected, self.judge.gaps_s, strict=True))
        for kind in FaultKind:
            opens = [injected.open_requests for injected, _ in hits if injected.fault.kind is kind]
            if opens:
                gap_s = max(gap_s for injected, gap_s in hits if injected.fault.kind is kind)
                table.add_row(kind.value, str(len(opens)), str(sum(opens)), f"{gap_s:.1f} s")
        return table

    def _requests(self) -> Table:
        judge, plan = self.judge, self.plan
        timers = f"heartbeat {plan.heartbeat_s:g} s, eviction {plan.eviction_s:g} s, lost 1 s"
        table = Table(title="Requests", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        rows = {
            "load": f"{plan.streams} streams and {plan.unary} unary at a time, {plan.clients} clients",
            "timers in force": "the fleet's own" if plan.endpoints else timers,
            "duration": f"{self.duration_s:.1f} s",
            "requests": f"{judge.requests} ({judge.streams} streams)",
            "answered": str(judge.answered),
            "lost": str(judge.lost),
            "duplicated": str(judge.doubled),
            "tokens wrong": str(judge.wrong),
            "tokens judged": str(judge.tokens),
            "longest gap between tokens": f"{judge.longest_gap_s:.1f} s",
            **{label: str(self.counts[name]) for name, label in COUNTED.items()},
        }
        for label, value in rows.items():
            table.add_row(label, value)
        return table

    def _verdict(self) -> list[Text]:
        problems = self.problems()
        if not problems:
            words = "Nothing lost, nothing twice, nothing wrong"
            words += " until it was interrupted." if self.was_interrupted else "."
            return [Text(words, style="bold green")]
        lines = [Text(f"FAILED: {problem}", style="bold red") for problem in problems]
        return [*lines, *(Text(f"  {complaint}", style="dim") for complaint in self.judge.complaints)]
