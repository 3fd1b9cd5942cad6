"""When an engine process that has ended is started again. Pure: `now` comes in, in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

FIRST_S: Final = 0.5
MOST_S: Final = 30.0
HEALTHY_S: Final = 60.0
"""Having served so long, a process counts as healthy: its end is the first of a new series."""
LOAD_TRIES: Final = 3
"""What fails to load so often, and has never loaded, will not: too small a device, a driver that is gone."""


@dataclass(slots=True)
class RestartPolicy:
    """The series of ends of one device's processes: each is followed by a longer pause."""

    load_tries: int = LOAD_TRIES
    _ends: int = field(default=0, init=False)
    _ready_at: float | None = field(default=None, init=False)
    _has_served: bool = field(default=False, init=False)
    is_hopeless: bool = field(default=False, init=False)

    def ready(self, now: float) -> None:
        """Note that the process has loaded."""
        self._ready_at, self._has_served = now, True

    def give_up(self) -> None:
        """Note that no further process will do better: the next end is the last."""
        self.is_hopeless = True

    def ended(self, now: float) -> float | None:
        """Note that the process has ended; return when to start the next one, or None to give the device up."""
        if self._ready_at is not None and now - self._ready_at >= HEALTHY_S:
            self._ends = 0
        self._ready_at = None
        self._ends += 1
        if self.is_hopeless or (not self._has_served and self._ends >= self.load_tries):
            return None
        return now + min(MOST_S, FIRST_S * float(1 << min(self._ends - 1, 30)))
