"""What a run showed: the verdict, the table for people, the record for programs. Pure."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
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


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a run must have gone through to prove anything."""

    resumes: int
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
    died: Sequence[str]
    counts: dict[str, int]
    demands: Demands

    def problems(self) -> list[str]:
        """Return why this run is a failure; empty if it is none."""
        judge, demands = self.judge, self.demands
        found: list[str] = []
        if judge.lost:
            kinds = ", ".join(f"{count} {kind}" for kind, count in judge.errors.most_common())
            found.append(f"{judge.lost} requests lost ({kinds})")
        if judge.doubled:
            found.append(f"{judge.doubled} answers with tokens that came twice")
        if judge.wrong:
            found.append(f"{judge.wrong} wrong answers")
        if not judge.requests:
            found.append("nothing was asked")
        found += self.died
        for kind, count in Counter(fault.kind for fault in self.missed).items():
            found.append(f"{count} {kind.value} found nobody to strike: fewer faults, more nodes, or more time")
        for name, least in (("resumes", demands.resumes), ("late_reply", demands.fenced)):
            if self.counts[name] < least:
                found.append(f"only {self.counts[name]} {COUNTED[name]}, {least} are the least that proves anything")
        return found

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
            "longest_gap_s": judge.longest_gap_s(),
            "counts": self.counts,
            "faults": [self._row(struck) for struck in self.struck],
            "problems": self.problems(),
            "complaints": judge.complaints,
        }

    def _row(self, struck: Struck) -> dict[str, Any]:
        fault = dataclasses.asdict(struck.fault)
        return {
            "at_s": struck.at_s,
            "kind": struck.fault.kind.value,
            "victim": struck.victim,
            "open": struck.open_requests,
            "lasts_s": fault["lasts_s"],
            "longest_gap_s": self.judge.longest_gap_s(struck.at_s),
        }

    def _faults(self) -> Table:
        table = Table(title=f"Faults of seed {self.seed}", title_justify="left")
        for name in ("at", "fault", "victim", "open on it", "lasts", "longest gap"):
            table.add_column(name, justify="left" if name in ("fault", "victim") else "right")
        for struck in self.struck:
            fault = struck.fault
            lasts = f"{fault.lasts_s:.1f} s" if fault.lasts_s else ""
            gap = f"{self.judge.longest_gap_s(struck.at_s):.1f} s"
            at = f"{struck.at_s:.1f} s"
            table.add_row(at, fault.kind.value, struck.victim, str(struck.open_requests), lasts, gap)
        return table

    def _kinds(self) -> Table:
        table = Table(title="By kind", title_justify="left")
        for name in ("fault", "times", "open on victims", "longest gap"):
            table.add_column(name, justify="left" if name == "fault" else "right")
        for kind in FaultKind:
            hits = [struck for struck in self.struck if struck.fault.kind is kind]
            if hits:
                gap = max(self.judge.longest_gap_s(one.at_s) for one in hits)
                table.add_row(kind.value, str(len(hits)), str(sum(one.open_requests for one in hits)), f"{gap:.1f} s")
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
            "longest gap": f"{judge.longest_gap_s():.1f} s",
            **{label: str(self.counts[name]) for name, label in COUNTED.items()},
        }
        for label, value in rows.items():
            table.add_row(label, value)
        return table

    def _verdict(self) -> list[Text]:
        problems = self.problems()
        if not problems:
            return [Text("Nothing lost, nothing twice, nothing wrong.", style="bold green")]
        lines = [Text(f"FAILED: {problem}", style="bold red") for problem in problems]
        return [*lines, *(Text(f"  {complaint}", style="dim") for complaint in self.judge.complaints)]
