"""Things to do later, by time; the caller brings the time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")
INFINITY: Final = float("inf")


class Timers(Generic[T]):
    """Whose turn is when. Nothing is taken back: whoever is woken is asked whether it still matters."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0

    def add(self, when: float, one: T) -> None:
        """Wake it then."""
        self._count += 1  # breaks ties, so that the things themselves are never compared
        heapq.heappush(self._heap, (when, self._count, one))

    def first(self) -> float:
        """When the next one is due."""
        return self._heap[0][0] if self._heap else INFINITY

    def due(self, now: float) -> Iterator[T]:
        """Take out those whose time has come."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[2]
