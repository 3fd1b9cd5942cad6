"""What a run showed: the verdict, the table for people, the record for programs. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .fleet import Struck
from .judge import Judge
from .plan import Fault, FaultKind

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
class Demands:
    """What a run must have gone through to prove anything; resumes None: one for each fault that cuts streams off."""

    resumes: int | None
    fenced: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run that is over."""

    seed: int
    duration_s: float
    load: str
    timers: str
    judge: Judge
    struck: Sequence[Struck]
    missed: Sequence[Fault]
    broken: Sequence[str]
    was_interrupted: bool
    counts: dict[str, int]
    demands: Demands

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
            found.append(f"{count} {kind.value} found nobody to strike: fewer faults, more nodes, or more time")
        return found if self.was_interrupted else found + self._shortcomings()

    def _shortcomings(self) -> list[str]:
        """Say what was too little for the run to prove anything."""
        cutting = sum(struck.fault.kind in _CUTTING for struck in self.struck) if self.judge.streams else 0
        least = {"resumes": cutting, "late_reply": self.demands.fenced}
        if self.demands.resumes is not None:
            least["resumes"] = self.demands.resumes
        return [
            f"only {self.counts[name]} {COUNTED[name]}, {count} are the least that proves anything"
            for name, count in least.items()
            if self.counts[name] < count
        ]

    def render(self) -> RenderableType:
        """Draw it."""
        return Group(self._faults(), self._kinds(), self._summary(), *self._verdict())

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        judge = self.judge
        return {
            "seed": self.seed,
            "duration_s": self.duration_s,
            "requests": judge.requests,
            "answered": judge.answered,
            "lost": judge.lost,
            "duplicated": judge.doubled,
            "wrong": judge.wrong,
            "tokens": judge.tokens,
            "longest_gap_s": judge.longest_gap_s,
            "counts": self.counts,
            "faults": [self._row(*each) for each in self._struck_with_gaps()],
            "problems": self.problems(),
            "complaints": judge.complaints,
        }

    def _struck_with_gaps(self) -> Iterable[tuple[Struck, float]]:
        return zip(self.struck, self.judge.gaps_s, strict=True)

    def _row(self, struck: Struck, gap_s: float) -> dict[str, Any]:
        return {
            "at_s": struck.at_s,
            "kind": struck.fault.kind.value,
            "victim": struck.victim,
            "open": struck.open_requests,
            "lasts_s": struck.fault.lasts_s,
            "longest_gap_s": gap_s,
        }

    def _faults(self) -> Table:
        table = Table(title=f"Faults of seed {self.seed}", title_justify="left")
        for name in ("at", "fault", "victim", "open on it", "lasts", "longest gap"):
            table.add_column(name, justify="left" if name in ("fault", "victim") else "right")
        for struck, gap_s in self._struck_with_gaps():
            fault = struck.fault
            lasts = f"{fault.lasts_s:.1f} s" if fault.lasts_s else ""
            at, gap = f"{struck.at_s:.1f} s", f"{gap_s:.1f} s"
            table.add_row(at, fault.kind.value, struck.victim, str(struck.open_requests), lasts, gap)
        return table

    def _kinds(self) -> Table:
        table = Table(title="By kind", title_justify="left")
        for name in ("fault", "times", "open on victims", "longest gap"):
            table.add_column(name, justify="left" if name == "fault" else "right")
        for kind in FaultKind:
            hits = [(struck, gap_s) for struck, gap_s in self._struck_with_gaps() if struck.fault.kind is kind]
            if hits:
                open_requests, gap_s = sum(one.open_requests for one, _ in hits), max(gap for _, gap in hits)
                table.add_row(kind.value, str(len(hits)), str(open_requests), f"{gap_s:.1f} s")
        return table

    def _summary(self) -> Table:
        judge = self.judge
        table = Table(title="Requests", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        rows = {
            "load": self.load,
            "timers in force": self.timers,
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
