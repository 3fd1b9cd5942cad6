"""What snapshots show over time: rates, quantiles of the last minute, and the curves behind the sparklines. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ...protocol.histogram import Histogram, total
from ...protocol.snapshot import ServiceStatus, Snapshot
from ..rates import TokenRates
from .fleet import BrokerView, snapshots
from .outages import Outages

WINDOW_S: Final = 60.0
"""Quantiles are of what ended in this time."""
_KEPT: Final = 600
"""Points of a curve: ten minutes at one a second."""
_MOST_LOOKS: Final = 240
"""A bound for a clock that stands still: four looks for each second of the window."""


@dataclass(frozen=True, slots=True)
class Point:
    """One second of the fleet. Rates are per second; None = not known yet."""

    tokens_per_s: float | None
    answered_per_s: float | None


@dataclass(frozen=True, slots=True)
class Latency:
    """Median and 99th percentile in seconds, of what ended within the window; None of nothing."""

    median_s: float | None
    p99_s: float | None


class FleetHistory:
    """Folds the views of brokers as they come, about one a second."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=_KEPT)
        self.tokens_per_s: dict[str, dict[str, float]] = {}
        """By worker_uuid and device."""
        self.first_token = Latency(None, None)
        self.duration = Latency(None, None)
        self.outages = Outages()
        self._rates_of: dict[str, TokenRates] = {}
        self._before: dict[int, Snapshot] = {}
        self._window: deque[tuple[float, dict[int, Snapshot]]] = deque(maxlen=_MOST_LOOKS)
        self._is_new = True

    def fold(self, views: Sequence[BrokerView], now: float) -> None:
        """Add one look at all brokers, at a time on any clock. Snapshots that were added already change nothing."""
        self.outages.fold(views, now)
        seen = {snapshot.broker_epoch: snapshot for snapshot in snapshots(views)}
        if seen and all(self._before.get(epoch) is snapshot for epoch, snapshot in seen.items()):
            return
        self.tokens_per_s = self._rates(views)
        known = [rate for devices in self.tokens_per_s.values() for rate in devices.values()]
        self.points.append(
            Point(
                tokens_per_s=sum(known) if known else None,
                answered_per_s=self._answered_per_second(seen),
            )
        )
        self._before = seen
        self._move_window(seen, now)
        self.first_token = self._latency(seen, lambda service: service.first_token)
        self.duration = self._latency(seen, lambda service: service.duration)
        self._is_new = False

    def copy(self) -> FleetHistory:
        """Return a copy that no further look changes."""
        made = FleetHistory()
        made.points.extend(self.points)
        made.tokens_per_s, made.first_token, made.duration = self.tokens_per_s, self.first_token, self.duration
        return made

    def _move_window(self, seen: dict[int, Snapshot], now: float) -> None:
        if self._window and now < self._window[-1][0]:
            self._window.clear()  # the clock was set back
        self._window.append((now, seen))
        while now - self._window[0][0] > WINDOW_S:
            self._window.popleft()

    def curve(self, read: Callable[[Point], float | None]) -> list[float]:
        """Return one number of each second, the newest last; what is not known counts as 0."""
        return [read(point) or 0.0 for point in self.points]

    def _rates(self, views: Sequence[BrokerView]) -> dict[str, dict[str, float]]:
        """Read each broker's heartbeats; for a node that several of them know, take the one with most devices."""
        rates: dict[str, dict[str, float]] = {}
        for view in views:
            if view.snapshot is None:
                self._rates_of.pop(view.endpoint, None)
                continue
            for uuid, devices in self._rates_of.setdefault(view.endpoint, TokenRates()).fold(view.snapshot).items():
                if len(devices) >= len(rates.get(uuid, {})):
                    rates[uuid] = devices
        return rates

    def _answered_per_second(self, seen: dict[int, Snapshot]) -> float | None:
        """Add up the brokers that were there a moment ago; None if there were none."""
        rates: list[float] = []
        for epoch, snapshot in seen.items():
            before = self._before.get(epoch)
            if before is not None and snapshot.uptime_s > before.uptime_s:
                grown = snapshot.counters.get("completed", 0) - before.counters.get("completed", 0)
                rates.append(grown / (snapshot.uptime_s - before.uptime_s))
        return sum(rates) if rates else None

    def _latency(self, seen: dict[int, Snapshot], read: Callable[[ServiceStatus], Histogram]) -> Latency:
        """Return the quantiles of the window; on the very first look, those since the brokers began."""
        grown: list[Histogram] = []
        for epoch, newest in seen.items():
            oldest = next(look[epoch] for _, look in self._window if epoch in look)
            if oldest is newest and not self._is_new:
                continue  # a broker that has just appeared: what it counted before is not of this minute
            before = {service.service: read(service) for service in oldest.services} if oldest is not newest else {}
            for service in newest.services:
                earlier = before.get(service.service)
                grown.append(read(service).since(earlier) if earlier is not None else read(service))
        whole = total(grown)
        return Latency(whole.quantile(0.5), whole.quantile(0.99))
