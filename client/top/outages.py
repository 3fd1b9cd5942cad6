"""Events of the brokers themselves: lost, back, leaving. No broker reports its own end, so the monitor does. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from ...protocol.sanitize import printable
from ...protocol.snapshot import EventKind, EventLevel, FleetEvent
from .fleet import BrokerView, SourcedEvent

_KEPT: Final = 64
"""As many as four brokers make that are lost and come back eight times."""
_LEVELS: Final[dict[str, EventLevel]] = {"lost": "error", "returned": "info", "draining": "warning"}


@dataclass(slots=True)
class _Known:
    """A broker as it was at the last look."""

    name: str
    epoch: int = 0
    is_draining: bool = False
    lost_at: float | None = None


class Outages:
    """The newest events of brokers, by the endpoints that are watched."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._events: deque[tuple[str, FleetEvent]] = deque(maxlen=_KEPT)
        self._last_id = 0
        self._now = float("-inf")

    def fold(self, views: Sequence[BrokerView], now: float) -> None:
        """Add one look; `now` is on any clock, as long as it is always the same."""
        if now < self._now:
            self._known.clear()
            self._events.clear()
        self._now = now
        for view in views:
            known = self._known.setdefault(view.endpoint, _Known(view.name))
            if view.snapshot is None and not view.problem:
                continue
            if view.snapshot is None:
                self._missed(view, known, now)
            else:
                self._seen(view, known, now)

    def _missed(self, view: BrokerView, known: _Known, now: float) -> None:
        if view.is_leaving and known.lost_at is None:
            if not known.is_draining:
                known.is_draining = True
                self._note("draining", view.endpoint, known, printable(view.problem), now)
        elif known.lost_at is None:
            known.lost_at = now
            self._note("lost", view.endpoint, known, printable(view.problem), now)
        else:
            self._amend(view)

    def _amend(self, view: BrokerView) -> None:
        """Correct the text of a loss: the first look rarely knows the cause."""
        for index in range(len(self._events) - 1, -1, -1):
            endpoint, event = self._events[index]
            if endpoint == view.endpoint:
                if event.kind == "lost":
                    self._events[index] = endpoint, msgspec.structs.replace(event, text=printable(view.problem))
                return

    def _seen(self, view: BrokerView, known: _Known, now: float) -> None:
        snapshot = view.snapshot
        assert snapshot is not None
        is_another = known.epoch not in (0, snapshot.broker_epoch)
        known.name = snapshot.broker_id
        if known.lost_at is not None:
            anew = ", started anew" if is_another else ""
            self._note("returned", view.endpoint, known, f"after {now - known.lost_at:.0f} s{anew}", now)
        elif is_another:
            self._note("returned", view.endpoint, known, "it was started anew between two looks", now)
        if snapshot.draining and not (known.is_draining and not is_another):
            self._note("draining", view.endpoint, known, "it is leaving, and takes nothing new", now)
        known.epoch, known.is_draining, known.lost_at = snapshot.broker_epoch, snapshot.draining, None

    def _note(self, kind: EventKind, endpoint: str, known: _Known, text: str, now: float) -> None:
        self._last_id += 1
        event = FleetEvent(
            id=self._last_id, at_s=now, level=_LEVELS[kind], kind=kind, subject=f"broker {known.name}", text=text
        )
        self._events.append((endpoint, event))

    def events(self) -> list[SourcedEvent]:
        """List the events, the newest first, as old as they are at the last look."""
        return [
            SourcedEvent(
                broker=self._known[endpoint].name, endpoint=endpoint, event=event, ago_s=self._now - event.at_s
            )
            for endpoint, event in reversed(self._events)
            if endpoint in self._known
        ]
