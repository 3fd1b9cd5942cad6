"""Requests of one service that wait for a node: who comes first, and how much waits.

First those that come back from a lost node, then by priority (higher first), and within one priority each party in
turn (a connection, or whom it says it asks for), so that one that sends a thousand requests does not starve one that
sends a single one.

A request that ends while it waits is only counted out; its entry is skipped when its turn comes, and swept up when
such entries are the majority. They are small: an ended request has let go of its body (`Request.slim`).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, Protocol, TypeVar

from ..protocol import messages as m

_SWEEP_FROM: Final = 64
"""Below this many dead entries sweeping is not worth its while."""
_NEWCOMER: Final = 8
"""Who has less than an eighth of the bound waiting finds room beyond it."""


class Waiting(Protocol):
    """What can wait: a request. The queue knows no more of it."""

    is_waiting: bool
    """Whether it waits here. Written by the queue alone: an entry without it is dead."""

    @property
    def ask(self) -> m.Request:
        """What the client sent."""
        raise NotImplementedError

    @property
    def party(self) -> Hashable:
        """Whose turn it takes."""

    @property
    def user(self) -> Hashable:
        """Whose request it is."""

    @property
    def revision(self) -> str | None:
        """The weights that it needs, if it has begun."""


R = TypeVar("R", bound=Waiting)


class _Level(Generic[R]):
    """One priority: a line for each party, served in turn."""

    __slots__ = ("_turns", "lines")

    def __init__(self) -> None:
        self.lines: dict[Hashable, deque[R]] = {}
        self._turns: deque[Hashable] = deque()

    def __bool__(self) -> bool:
        return bool(self._turns)

    def push(self, request: R) -> None:
        line = self.lines.get(request.party)
        if line is None:
            line = self.lines[request.party] = deque()
            self._turns.append(request.party)
        line.append(request)

    def pop(self) -> R:
        party = self._turns[0]
        line = self.lines[party]
        request = line.popleft()
        if line:
            self._turns.rotate(-1)
        else:
            self._turns.popleft()
            del self.lines[party]
        return request

    def sweep(self) -> None:
        for party in list(self._turns):
            alive = deque(_alive(self.lines[party]))
            self.lines[party] = alive
            if not alive:
                del self.lines[party]
        self._turns = deque(party for party in self._turns if party in self.lines)


class ServiceQueue(Generic[R]):
    """What waits for one service. `count` and `size_bytes` are exact; bounds are the business of whoever pushes."""

    __slots__ = (
        "_dead",
        "_front",
        "_levels",
        "_order",
        "_waiting_of",
        "count",
        "parked",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self._front: deque[R] = deque()
        self.parked: dict[str, deque[R]] = {}
        """Started streams by the revision that they need, while no node that has it is free."""
        self._levels: dict[int, _Level[R]] = {}
        self._order: list[int] = []  # negated priorities, so that the highest comes first
        self._dead = 0
        self._waiting_of: dict[Hashable, int] = {}
        """By party, and by user."""

    def has_room(self, party: Hashable, user: Hashable, size: int, most: int, most_bytes: int) -> bool:
        """Say whether one more may wait.

        The bound is for all together, but nobody can use it up for others: half as much again is for parties that have
        little waiting, and another half for users that have. So one that fills the queue, over however many
        connections, is told to come later, and the others are not.
        """
        few = max(1, most // _NEWCOMER)
        halves = 2
        if self._waiting_of.get(party, 0) < few:
            halves = 3 if self._waiting_of.get(user, 0) >= few else 4
        return 2 * self.count < halves * most and 2 * (self.size_bytes + size) <= halves * most_bytes

    def push(self, request: R) -> None:
        """Add a new request at the end of its client's line."""
        prio = request.ask.prio
        level = self._levels.get(prio)
        if level is None:
            level = self._levels[prio] = _Level()
            insort(self._order, -prio)
        level.push(request)
        self._count_in(request)

    def push_front(self, request: R) -> None:
        """Add a request that has been with a node: it has waited before."""
        self._front.appendleft(request)
        self._count_in(request)

    def push_begun(self, request: R) -> None:
        """Add a request that was begun at another broker: behind those that were with a node of this one."""
        self._front.append(request)
        self._count_in(request)

    def park(self, request: R) -> None:
        """Set a request aside that none of the free nodes may continue, so that it does not hold up the others."""
        assert request.revision is not None
        self.parked.setdefault(request.revision, deque()).append(request)
        self._count_in(request)

    def unpark(self, revision: str) -> None:
        """Put those that need a revision back to the front: a node that has it is free."""
        for request in reversed(self.parked.pop(revision, ())):
            if self._take(request):
                self.push_front(request)

    def pop(self) -> R | None:
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

    def discard(self, request: R) -> None:
        """Count out a request that has ended while it waited."""
        self._count_out(request)
        self._dead += 1
        if self._dead > _SWEEP_FROM + self.count:
            self._sweep()

    def waiting(self) -> list[R]:
        """List what waits, for a look from outside."""
        lines = [line for level in self._levels.values() for line in level.lines.values()]
        return [r for line in (self._front, *self.parked.values(), *lines) for r in _alive(line)]

    @property
    def entries(self) -> int:
        """Return how many entries there are, the dead ones included."""
        return self.count + self._dead

    def _count_in(self, request: R) -> None:
        request.is_waiting = True
        self.count += 1
        self.size_bytes += len(request.ask.body)
        for name in (request.party, request.user):
            self._waiting_of[name] = self._waiting_of.get(name, 0) + 1

    def _count_out(self, request: R) -> None:
        request.is_waiting = False
        self.count -= 1
        self.size_bytes -= len(request.ask.body)
        for name in (request.party, request.user):
            left = self._waiting_of[name] - 1
            if left:
                self._waiting_of[name] = left
            else:
                del self._waiting_of[name]

    def _take(self, request: R) -> bool:
        if not request.is_waiting:
            self._dead -= 1
            return False
        self._count_out(request)
        return True

    def _sweep(self) -> None:
        self._front = deque(_alive(self._front))
        self.parked = {revision: deque(_alive(line)) for revision, line in self.parked.items()}
        for prio, level in list(self._levels.items()):
            level.sweep()
            if not level:
                del self._levels[prio]
                self._order.remove(-prio)
        self._dead = 0


def _alive(line: deque[R]) -> list[R]:
    return [request for request in line if request.is_waiting]
