"""The one clock of a simulated network, what is to happen when, and the last things that did."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Final

_TRACED: Final = 60
_WORDS: Final = 400
"""What one line of a trace is cut to: bodies are long and say little."""


class Agenda:
    """Virtual time. Things that are due at the same moment happen in the order they were planned."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._trace: deque[tuple[float, str, object]] = deque(maxlen=_TRACED)

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Plan something; the past counts as now."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Plan something for later."""
        self.at(self.now + seconds, do)

    def run(self, until: float, is_over: Callable[[], bool] | None = None) -> None:
        """Let everything happen that is due by then, or until it is over (asked after each event)."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, do = heapq.heappop(self._heap)
            self.events += 1
            do()
            if is_over is not None and is_over():
                return
        self.now = max(self.now, until)

    def note(self, who: str, what: object) -> None:
        """Remember something for the trace; it is put into words only if somebody reads them."""
        self._trace.append((self.now, who, what))

    def trace(self) -> str:
        """Put the last events into words."""
        return "\n".join(f"{when - 1000:9.4f} {who:12} {str(what)[:_WORDS]}" for when, who, what in self._trace)
