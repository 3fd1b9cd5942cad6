"""Deadlines of things, at most thing for each; the caller brings the time."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

T = TypeVar("T")
INFINITY: Final = float("inf")
_FEW: Final = 64
"""Entries that are over and not yet swept out, whatever the number of the others."""


class Timers(Generic[T]):
    """Whose turn is when, at most once for each thing. What is dropped leaves nothing behind.

    Most things are over long before their time: a heap that kept them would hold every request of the last minute, or
    of the last hour. Entries that are over are swept out when they are more than those that are not, so that it costs
    the same however many there are.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._things: dict[int, T] = {}
        """By number of entry; an entry whose number is not here is over."""
        self._numbers: dict[T, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._things)

    def add(self, when: float, thing: T) -> None:
        """Wake it then; a time that it had before is forgotten."""
        if thing in self._numbers:
            self.drop(thing)
        self._count += 1  # breaks ties, so that the things themselves are never compared
        self._things[self._count] = thing
        self._numbers[thing] = self._count
        heapq.heappush(self._heap, (when, self._count))

    def drop(self, thing: T) -> None:
        """Do not wake it, if it was to be."""
        number = self._numbers.pop(thing, None)
        if number is None:
            return
        del self._things[number]
        if len(self._heap) > 2 * len(self._things) + _FEW:
            self._heap = [entry for entry in self._heap if entry[1] in self._things]
            heapq.heapify(self._heap)

    def first(self) -> float:
        """When the next thing is due."""
        heap = self._heap
        while heap and heap[0][1] not in self._things:
            heapq.heappop(heap)
        return heap[0][0] if heap else INFINITY

    def due(self, now: float) -> Iterator[T]:
        """Take out those whose time has come."""
        while self.first() <= now:
            thing = self._things.pop(heapq.heappop(self._heap)[1])
            del self._numbers[thing]
            yield thing
