"""When Python's garbage collector may walk over everything: seldom, and rather when nothing happens.

In-flight requests are many small objects that live for seconds; with the default thresholds they would be walked over
all the time, for cycles that they do not have.
"""

from __future__ import annotations

import gc
from typing import Final

_THRESHOLDS: Final = (50_000, 20, 50)
_IDLE_S: Final = 2.0


class GarbageCollection:
    """Collects when no request came for a while."""

    def __init__(self) -> None:
        self._allocated = 0
        self._idle_since = 0.0
        self._is_clean = False

    def begin(self) -> None:
        """Set what was made at the start aside: it stays."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)

    def tick(self, now: float) -> None:
        """Look whether anything happened since the last time; collect once when nothing did for a while."""
        young = gc.get_count()[0]
        if abs(young - self._allocated) > 500:  # a heartbeat makes a handful, a request dozens
            self._idle_since, self._is_clean = now, False
        elif not self._is_clean and now - self._idle_since >= _IDLE_S:
            gc.collect()
            self._is_clean = True
        self._allocated = gc.get_count()[0]
