"""Requests of one service that wait for a node: who comes first, and how much waits.

First those that come back from a lost node, then by priority (higher first), and within one priority each party in
turn (a connection, or whom it says it asks for), so that one that sends a thousand requests does not starve one that
sends a single one.

A request that ends while it waits is only counted out; its entry is skipped when its turn comes, and swept up when
such entries are the majority. They are small: an ended request has let go of its body (`Request.slim`).
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from ..protocol import messages as m
from .nodes import Demand, Supply

_SWEEP_FROM: Final = 64
"""Below this many dead entries sweeping is not worth its while."""
_NEWCOMER: Final = 8
"""Who has less than an eighth of the bound waiting finds room beyond it."""


class Waiting(Protocol):
    """What can wait: a request. The queue knows no more of it."""

    is_waiting: bool
    """Whether it waits here. Written by the queue alone, as the next one: an entry without it is dead."""
    is_parked: bool
    """Whether it waits for another node than those that are free."""

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
    def demand(self) -> Demand:
        """Which nodes it may go to."""
        raise NotImplementedError


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


class _Lane(Generic[R]):
    """Those that wait for the same: who was with a node before, then by priority, each party in turn."""

    __slots__ = ("_levels", "_order", "front")

    def __init__(self) -> None:
        self.front: deque[R] = deque()
        self._levels: dict[int, _Level[R]] = {}
        self._order: list[int] = []  # negated priorities, so that the highest comes first

    def __bool__(self) -> bool:
        return self.rank > -math.inf

    @property
    def rank(self) -> float:
        """How soon its first entry is due: those that were with a node before all, then by priority; -inf: none."""
        if self.front:
            return math.inf
        while self._order:
            prio = -self._order[0]
            if self._levels[prio]:
                return prio
            del self._levels[prio]
            del self._order[0]
        return -math.inf

    def push(self, request: R) -> None:
        prio = request.ask.prio
        level = self._levels.get(prio)
        if level is None:
            level = self._levels[prio] = _Level()
            insort(self._order, -prio)
        level.push(request)

    def pop(self) -> R:
        """Take the first entry; only after a look at its rank, and if there is one."""
        return self.front.popleft() if self.front else self._levels[-self._order[0]].pop()

    def entries(self) -> Iterator[R]:
        return itertools.chain(self.front, *(line for level in self._levels.values() for line in level.lines.values()))

    def sweep(self) -> None:
        self.front = deque(_alive(self.front))
        for level in self._levels.values():
            level.sweep()


class ServiceQueue(Generic[R]):
    """What waits for one service. `count` and `size_bytes` are exact; bounds are the business of whoever pushes.

    Attributes:
        due: What a new request has to wait behind: those that wait for their turn alone, and demands that are awake.
        parked: Those whose turn has come while no node was free that meets their demand: they hold up nobody …
        awake: … and the demands of those for which a node may be free now.
    """

    __slots__ = ("_dead", "_main", "_waiting_of", "awake", "count", "due", "parked", "size_bytes")

    def __init__(self) -> None:
        self.count = 0
        self.due = 0
        self.size_bytes = 0
        self.parked: dict[Demand, _Lane[R]] = {}
        self.awake: dict[Demand, None] = {}
        self._main: _Lane[R] = _Lane()
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
        self._main.push(request)
        self._count_in(request)

    def push_front(self, request: R) -> None:
        """Add a request that has been with a node: it has waited before."""
        self._main.front.appendleft(request)
        self._count_in(request)

    def push_begun(self, request: R) -> None:
        """Add a request that was begun at another broker: behind those that were with a node of this one."""
        self._main.front.append(request)
        self._count_in(request)

    def park(self, request: R, *, has_begun: bool) -> None:
        """Set a request aside that none of the free nodes may take, so that it does not hold up the others."""
        lane = self.parked.get(request.demand)
        if lane is None:
            lane = self.parked[request.demand] = _Lane()
        if has_begun:
            lane.front.append(request)
        else:
            lane.push(request)
        self._count_in(request)
        request.is_parked = True
        self.due -= 1

    def awaken(self, supply: Supply) -> None:
        """Note that a node is free: it may be what some of the parked ones wait for."""
        for demand in self.parked:
            if demand not in self.awake and demand.is_met_by(supply):
                self.awake[demand] = None
                self.due += 1

    def pop(self, is_met: Callable[[Demand], bool]) -> R | None:
        """Take the next request that still waits: one whose turn it is, or a parked one whose demand is met now."""
        while (lane := self._next_lane(is_met)) is not None:
            request = lane.pop()
            if self._take(request):
                return request
        return None

    def discard(self, request: R) -> None:
        """Count out a request that has ended while it waited."""
        self._count_out(request)
        self._dead += 1
        if self._dead > _SWEEP_FROM + self.count:
            self._sweep()

    def waiting(self) -> list[R]:
        """List what waits, for a look from outside."""
        return [request for lane in (self._main, *self.parked.values()) for request in _alive(lane.entries())]

    @property
    def entries(self) -> int:
        """Return how many entries there are, the dead ones included."""
        return self.count + self._dead

    def _next_lane(self, is_met: Callable[[Demand], bool]) -> _Lane[R] | None:
        """Return the lane whose first entry is due; the parked ones come before equals, for they were due before."""
        main = self._main
        if self.awake:
            for demand in sorted(self.awake, key=lambda demand: self.parked[demand].rank, reverse=True):
                lane = self.parked[demand]
                if main.rank > lane.rank > -math.inf:
                    break
                del self.awake[demand]
                if lane and is_met(demand):
                    self.awake[demand] = None  # behind the others: its turn is over
                    return lane
                self.due -= 1
                if not lane:
                    del self.parked[demand]
        return main or None

    def _count_in(self, request: R) -> None:
        request.is_waiting = True
        self.count += 1
        self.due += 1
        self.size_bytes += len(request.ask.body)
        for name in (request.party, request.user):
            self._waiting_of[name] = self._waiting_of.get(name, 0) + 1

    def _count_out(self, request: R) -> None:
        request.is_waiting = False
        self.count -= 1
        if request.is_parked:
            request.is_parked = False
        else:
            self.due -= 1
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
        for lane in (self._main, *self.parked.values()):
            lane.sweep()
        self.parked = {demand: lane for demand, lane in self.parked.items() if lane}
        self.due -= sum(demand not in self.parked for demand in self.awake)
        self.awake = {demand: None for demand in self.awake if demand in self.parked}
        self._dead = 0


def _alive(line: Iterable[R]) -> list[R]:
    return [request for request in line if request.is_waiting]
