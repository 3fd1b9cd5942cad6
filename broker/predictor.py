"""When a request that has to wait for a service will be started, and how sure that is.

What comes before it, in seconds of nodes' work (service_times.py), over how much is done at once. How wrong that was
for those who have waited is measured, by priority: where others come in between, or a fleet is slower when it is full,
all waits are longer than the arithmetic says, and what is said next is longer too. What remains is the error that is
allowed for.

As long as nothing was answered nothing is said, and whoever asks is let in.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .backlog import Before
from .service_times import ServiceTimes, Workload

_SMOOTHING: Final = 0.03
_FIRST_ERROR: Final = 0.25
"""What little is known is thought to be wrong by so much of it."""
_MOST_RATIO: Final = 4.0
"""A wait is not thought to be longer, or shorter, than so many times what the arithmetic says."""
_ERRORS: Final = 6.0
"""So many mean errors are allowed for: of a bell curve next to none is further off …"""
_MOST_WAIT_ALLOWANCE: Final = 3.0
_MOST_RUN_ALLOWANCE: Final = 1.0
"""… but no more than this share of it: whose answers differ tenfold in length is not refused for what may happen."""
_MOST_PRIORITIES: Final = 16


class Forecast(msgspec.Struct, frozen=True, gc=False):
    """What is expected of one request.

    Attributes:
        before: How many have their turn first.
        raw_s: The wait by arithmetic alone; what is measured is measured against this.
        wait_s: The wait as experience has it.
        run_s: From the start to the end.
        sure_s: Until its end, if the others go on asking, with as much more as forecasts are usually wrong by.
    """

    before: int
    raw_s: float
    wait_s: float
    run_s: float
    sure_s: float


class _Accuracy:
    """How waits turned out, of one priority."""

    __slots__ = ("_actual_s", "_error_s", "_raw_s")

    def __init__(self) -> None:
        self._actual_s = self._raw_s = self._error_s = 0.0

    @property
    def ratio(self) -> float:
        """By how much waits are longer than thought."""
        if not self._raw_s:
            return 1.0
        return min(_MOST_RATIO, max(1 / _MOST_RATIO, self._actual_s / self._raw_s))

    @property
    def error(self) -> float:
        """By what part of them they are missed all the same."""
        return self._error_s / self._actual_s if self._actual_s else _FIRST_ERROR

    def learn(self, raw_s: float, actual_s: float) -> None:
        share, error_s = _SMOOTHING, abs(actual_s - self.ratio * raw_s)
        if not self._raw_s:
            share, error_s = 1.0, _FIRST_ERROR * actual_s
        self._raw_s += share * (raw_s - self._raw_s)
        self._actual_s += share * (actual_s - self._actual_s)
        self._error_s += share * (error_s - self._error_s)


class WaitPredictor:
    """That of one service."""

    __slots__ = ("_accuracies", "times")

    def __init__(self) -> None:
        self.times = ServiceTimes()
        self._accuracies: dict[int, _Accuracy] = {}

    def foresee(self, before: Before, own: Workload, priority: int, at_once: int) -> Forecast | None:
        """Say when a request is started that has so much before it; None: nothing is known yet."""
        times = self.times
        if not times.are_known or at_once < 1:
            return None
        first_s = times.mean_s / (at_once + 1)  # until the first of those that run now ends: they began at any time
        places = at_once * before.pace
        raw_s = first_s + times.expected_s(before.now) / places
        accuracy = self._accuracies.get(priority)
        ratio, error = (accuracy.ratio, accuracy.error) if accuracy is not None else (1.0, _FIRST_ERROR)
        wait_s, run_s = ratio * raw_s, times.expected_s(own)
        at_most_s = first_s + times.expected_s(before.at_most) / places
        sure_s = max(wait_s, at_most_s) * (1 + min(_MOST_WAIT_ALLOWANCE, _ERRORS * error))
        sure_s += run_s * (1 + min(_MOST_RUN_ALLOWANCE, _ERRORS * times.relative_error))
        return Forecast(round(before.now.requests), raw_s, wait_s, run_s, sure_s)

    def learn_wait(self, forecast: Forecast, priority: int, waited_s: float) -> None:
        """Learn how long one has waited, or that it has waited so long in vain."""
        accuracy = self._accuracies.get(priority)
        if accuracy is None:
            if len(self._accuracies) >= _MOST_PRIORITIES:
                self._accuracies.clear()
            accuracy = self._accuracies[priority] = _Accuracy()
        accuracy.learn(forecast.raw_s, waited_s)
