"""Counts how long things took, by length: cheap to add to, and two of them subtract to what happened in between.

The bounds are the same everywhere, so histograms of several brokers or nodes add up, and Prometheus takes them as they
are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Final

import msgspec

BOUNDS_S: Final = (
    *(0.001, 0.002, 0.003, 0.005, 0.007),
    *(0.01, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 2.0, 3.0, 5.0, 7.0),
    *(10.0, 20.0, 30.0, 50.0, 70.0),
    *(100.0, 300.0),
)
"""Upper ends, inclusive; a 28th count is for everything longer. Steps of at most 2: a median is told within 20 %."""
_BUCKETS: Final = len(BOUNDS_S) + 1
_BULK: Final = 256
"""Sorting so many takes about 10 us, and saves half of what counting them one by one would."""


def _empty() -> list[int]:
    return [0] * _BUCKETS


class Histogram(msgspec.Struct, kw_only=True):
    """Counts per bucket (not cumulative), and the sum of all lengths in seconds."""

    counts: list[int] = msgspec.field(default_factory=_empty)
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one length."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self.counts)

    def copy(self) -> Histogram:
        """Return one that does not change with this one."""
        return Histogram(counts=self.counts[:], total_s=self.total_s)

    def since(self, earlier: Histogram) -> Histogram:
        """Return what was counted after `earlier`; all of it, if that is not an earlier state of this one."""
        counts = [now - before for now, before in zip(self.counts, earlier.counts, strict=False)]
        if len(counts) != len(self.counts) or any(count < 0 for count in counts):
            return self.copy()
        return Histogram(counts=counts, total_s=max(0.0, self.total_s - earlier.total_s))

    def quantile(self, share: float) -> float | None:
        """Return the length that `share` (0 to 1) of all stay within, in seconds; None of nothing.

        Within its bucket it is interpolated, as Prometheus does; beyond the last bound it is that bound.
        """
        rank, below = share * self.count, 0
        if not self.count:
            return None
        for index, count in enumerate(self.counts[: len(BOUNDS_S)]):
            if count and below + count >= rank:
                low = BOUNDS_S[index - 1] if index else 0.0
                return low + (BOUNDS_S[index] - low) * max(0.0, rank - below) / count
            below += count
        return BOUNDS_S[-1]


class Meter:
    """Counts lengths where each microsecond matters: they are sorted into a histogram in bulk, or when it is read."""

    __slots__ = ("_histogram", "_pending")

    def __init__(self) -> None:
        self._histogram: Histogram | None = None
        """None until something was counted: a service that has never answered anything stays small."""
        self._pending: list[float] = []

    def add(self, seconds: float) -> None:
        """Count one length."""
        pending = self._pending
        pending.append(seconds)
        if len(pending) >= _BULK:
            self._fold()

    def read(self) -> Histogram:
        """Return what has been counted; it does not change any more."""
        if self._pending:
            self._fold()
        return Histogram() if self._histogram is None else self._histogram.copy()

    def _fold(self) -> None:
        histogram = self._histogram = self._histogram or Histogram()
        pending, counts, below = self._pending, histogram.counts, 0
        pending.sort()
        for index, bound in enumerate(BOUNDS_S):
            here = bisect_right(pending, bound, below)
            counts[index] += here - below
            below = here
        counts[-1] += len(pending) - below
        histogram.total_s += sum(pending)
        pending.clear()


def total(histograms: Iterable[Histogram]) -> Histogram:
    """Add histograms up. One with other bounds (of another release) is left out."""
    summed = Histogram()
    for histogram in histograms:
        if len(histogram.counts) == _BUCKETS:
            summed.counts = [a + b for a, b in zip(summed.counts, histogram.counts, strict=True)]
            summed.total_s += histogram.total_s
    return summed
