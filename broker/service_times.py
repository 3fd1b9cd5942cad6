"""How long nodes take for a request of a service, learned from those that were answered.

So much for each, so much for each token that is read, so much for each that may be made: three numbers that are
corrected a little by every answer (normalized least mean squares). They need no history and no matrix, forget by
themselves what a fleet did an hour ago, and of requests that are all alike they learn their mean.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_FIRST_ERROR: Final = 0.25
"""What little is known is thought to be wrong by so much of it."""
_STEP: Final = 0.05
"""Share of an error that is corrected at once: a change is learned in some tens of answers; the first teach more."""


class Workload(NamedTuple):
    """How much some requests ask for. A sum of several tells what they take together, since times are linear in it."""

    requests: float
    read: float
    """Tokens of prompts."""
    made: float
    """Tokens of answers, at most."""

    def plus(self, other: Workload, share: float = 1.0) -> Workload:
        """Return the sum with a share of another one."""
        return Workload(
            self.requests + share * other.requests, self.read + share * other.read, self.made + share * other.made
        )

    @property
    def tokens(self) -> float:
        """Tokens that it takes, read and made."""
        return self.read + self.made


NO_WORK: Final = Workload(0, 0, 0)


class ServiceTimes:
    """Seconds from dispatch to end by what is asked; nothing is known before the first answer.

    Attributes:
        mean_s: Of the answers of late …
        error_s: … and by how much these were missed.
    """

    __slots__ = ("_each_s", "_made_s", "_made_unit", "_read_s", "_read_unit", "_step", "error_s", "mean_s")

    def __init__(self) -> None:
        self.mean_s = self.error_s = 0.0
        self._each_s = self._read_s = self._made_s = 0.0
        self._read_unit = self._made_unit = self._step = 1.0

    @property
    def are_known(self) -> bool:
        """Whether anything was answered yet."""
        return self.mean_s > 0

    @property
    def relative_error(self) -> float:
        """By what part of its length an answer is missed."""
        return self.error_s / self.mean_s if self.mean_s else 0.0

    def expected_s(self, work: Workload) -> float:
        """Return the seconds that requests take, all together and one after the other."""
        return (
            work.requests * self._each_s
            + work.read / self._read_unit * self._read_s
            + work.made / self._made_unit * self._made_s
        )

    def learn(self, work: Workload, took_s: float) -> None:
        """Learn from one answer."""
        if not self.mean_s:
            self._begin(work, took_s)
            return
        if work.read > self._read_unit or work.made > self._made_unit:
            self._widen(work)
        step = self._step = max(_STEP, self._step / (1 + self._step))  # 1/2, 1/3, …: a mean, while there are few
        error_s = took_s - self.expected_s(work)
        self.mean_s += step * (took_s - self.mean_s)
        self.error_s += step * (abs(error_s) - self.error_s)
        read, made = work.read / self._read_unit, work.made / self._made_unit
        step_s = step * error_s / (1.0 + read * read + made * made)
        self._each_s = max(0.0, self._each_s + step_s)
        self._read_s = max(0.0, self._read_s + step_s * read)
        self._made_s = max(0.0, self._made_s + step_s * made)

    def _widen(self, work: Workload) -> None:
        """Make the largest sizes the units, as the arithmetic wants it; what is expected does not change by that."""
        read_unit, made_unit = max(self._read_unit, work.read), max(self._made_unit, work.made)
        self._read_s *= read_unit / self._read_unit
        self._made_s *= made_unit / self._made_unit
        self._read_unit, self._made_unit = read_unit, made_unit

    def _begin(self, work: Workload, took_s: float) -> None:
        """Share the time of the first answer out evenly; its sizes are the first units."""
        part_s = took_s / (1 + (work.read > 0) + (work.made > 0))
        self.mean_s, self._each_s, self.error_s = took_s, part_s, _FIRST_ERROR * took_s
        if work.read > 0:
            self._read_unit, self._read_s = work.read, part_s
        if work.made > 0:
            self._made_unit, self._made_s = work.made, part_s
