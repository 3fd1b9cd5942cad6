"""Requests of one service that wait for a node: who comes first, and how much waits.

First those that come back from a lost node, then by priority (higher first), and within one priority each client in
turn, so that one that sends a thousand requests does not starve one that sends a single one.

A request that ends while it waits is only counted out; its entry is skipped when its turn comes, and swept up when
such entries are the majority.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import Final

from .requests import QUEUED, Request
from .sessions import Session

_SWEEP_FROM: Final = 64
"""Below this many dead entries sweeping is not worth its while."""
_SWEEP_FROM_BYTES: Final = 1 << 20
"""Their bodies count nowhere any more, so they must not be many."""


class _Level:
    """One priority: a line for each client, served in turn."""

    __slots__ = ("_turns", "lines")

    def __init__(self) -> None:
        self.lines: dict[Session, deque[Request]] = {}
        self._turns: deque[Session] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def push(self, request: Request) -> None:
        line = self.lines.get(request.origin)
        if line is None:
            line = self.lines[request.origin] = deque()
            self._turns.append(request.origin)
        line.append(request)

    def pop(self) -> Request:
        origin = self._turns[0]
        line = self.lines[origin]
        request = line.popleft()
        if line:
            self._turns.rotate(-1)
        else:
            self._turns.popleft()
            del self.lines[origin]
        return request

    def sweep(self) -> None:
        for origin in list(self._turns):
            alive = deque(_alive(self.lines[origin]))
            self.lines[origin] = alive
            if not alive:
                del self.lines[origin]
        self._turns = deque(origin for origin in self._turns if origin in self.lines)


class ServiceQueue:
    """What waits for one service. `count` and `size_bytes` are exact; bounds are the business of whoever pushes."""

    __slots__ = ("_dead", "_dead_bytes", "_front", "_levels", "_order", "count", "size_bytes", "stranded")

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self._front: deque[Request] = deque()
        self.stranded: dict[str, deque[Request]] = {}
        """Started streams by the revision that they need, while no node that has it is free."""
        self._levels: dict[int, _Level] = {}
        self._order: list[int] = []  # negated priorities, so that the highest comes first
        self._dead = 0
        self._dead_bytes = 0

    def push(self, request: Request) -> None:
        """Add a new request at the end of its client's line."""
        prio = request.ask.prio
        level = self._levels.get(prio)
        if level is None:
            level = self._levels[prio] = _Level()
            insort(self._order, -prio)
        level.push(request)
        self._count_in(request)

    def push_front(self, request: Request) -> None:
        """Add a request that has been with a node: it has waited before."""
        self._front.appendleft(request)
        self._count_in(request)

    def push_begun(self, request: Request) -> None:
        """Add a request that was begun at another broker: behind those that were with a node of this one."""
        self._front.append(request)
        self._count_in(request)

    def strand(self, request: Request) -> None:
        """Set a request aside that none of the free nodes may continue, so that it does not hold up the others."""
        assert request.revision is not None
        self.stranded.setdefault(request.revision, deque()).append(request)
        self._count_in(request)

    def rescue(self, revision: str) -> None:
        """Put those that need a revision back to the front: a node that has it is free."""
        for request in reversed(self.stranded.pop(revision, ())):
            if self._take(request):
                self.push_front(request)

    def pop(self) -> Request | None:
        """Take the next request that still waits."""
        while self._front:
            request = self._front.popleft()
            if self._take(request):
                return request
        while self._order:
            prio = -self._order[0]
            level = self._levels[prio]
            while level:
                request = level.pop()
                if self._take(request):
                    return request
            del self._levels[prio]
            del self._order[0]
        return None

    def discard(self, request: Request) -> None:
        """Count out a request that has ended while it waited."""
        self.count -= 1
        self.size_bytes -= len(request.ask.body)
        self._dead += 1
        self._dead_bytes += len(request.ask.body)
        if self._dead > _SWEEP_FROM + self.count or self._dead_bytes > _SWEEP_FROM_BYTES + self.size_bytes:
            self._sweep()

    def waiting(self) -> list[Request]:
        """List what waits, for a look from outside."""
        lines = [line for level in self._levels.values() for line in level.lines.values()]
        return [r for line in (self._front, *self.stranded.values(), *lines) for r in _alive(line)]

    @property
    def entries(self) -> int:
        """Return how many entries there are, the dead ones included."""
        return self.count + self._dead

    def _count_in(self, request: Request) -> None:
        self.count += 1
        self.size_bytes += len(request.ask.body)

    def _take(self, request: Request) -> bool:
        if request.state is not QUEUED:
            self._dead -= 1
            self._dead_bytes -= len(request.ask.body)
            return False
        self.count -= 1
        self.size_bytes -= len(request.ask.body)
        return True

    def _sweep(self) -> None:
        self._front = deque(_alive(self._front))
        self.stranded = {revision: deque(_alive(line)) for revision, line in self.stranded.items()}
        for prio, level in list(self._levels.items()):
            level.sweep()
            if not level:
                del self._levels[prio]
                self._order.remove(-prio)
        self._dead = 0
        self._dead_bytes = 0


def _alive(line: deque[Request]) -> list[Request]:
    return [request for request in line if request.state is QUEUED]
