"""Requests of one service that wait for a node: who comes first, and how much waits.

First those that come back from a lost node, then by priority: higher first, and a lower one after so many others.
Within one priority it is the turn of the tenant that has had the fewest tokens, so that one that sends a thousand
requests, or long ones, takes no more of the nodes than one that sends a few. Parties of a tenant (users, connections)
share its turns in the same way. A turn costs what its request is thought to cost, since nodes have not said a word by
then; what it really took is settled with the tenant's next turn.

A request that ends while it waits is only counted out; its entry is skipped when its turn comes, and swept up when
such entries are the majority. They are small: an ended request has let go of its body (`Request.slim`).
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Generic, Protocol, TypeVar

from ..protocol import messages as m
from .backlog import Backlog, Before, Piece
from .nodes import Demand, Supply

_SWEEP_FROM: Final = 64
"""Below this many dead entries sweeping is not worth its while."""
_NEWCOMER: Final = 8
"""Who has less than an eighth of the bound waiting finds room beyond it."""
_TELL_EVERY_S: Final = 1.0
_TOLD_PER_S: Final = 1000
PATIENCE: Final = 16
"""So many of higher priority go first, then one of a lower: bulk work moves on whatever else there is."""
_MOST_ACCOUNTS: Final = 512
"""Tenants remembered, and connections where there are no keys: those that had a turn last."""
_arrivals: Final = itertools.count()
"""Of equals who came first; and names need no order."""


class Waiting(Piece, Protocol):
    """What can wait: a request. The queue knows no more of it."""

    is_waiting: bool
    """Whether it waits here. Written by the queue alone, as the next one: an entry without it is dead."""
    is_parked: bool
    """Whether it waits for another node than those that are free."""
    charged: int
    """What its turn has cost its tenant; 0: it has had none."""

    @property
    def ask(self) -> m.Request:
        """What the client sent."""
        raise NotImplementedError

    @property
    def tokens(self) -> int:
        """How much it is thought to cost, before anybody knows; at least 1."""
        raise NotImplementedError

    @property
    def demand(self) -> Demand:
        """Which nodes it may go to."""
        raise NotImplementedError


R = TypeVar("R", bound=Waiting)


class _Account:
    """How much a tenant has had, in tokens on the clock of its queue."""

    __slots__ = ("had", "owed")

    def __init__(self, had: int) -> None:
        self.had = had
        self.owed = 0
        """What its turns really took beyond what they were thought to take; settled with its next turn."""

    def charge(self, tokens: int) -> None:
        """Move on by a turn; not back, for lines are sorted by it."""
        due = tokens + self.owed
        self.had += max(0, due)
        self.owed = min(0, due)

    def catch_up(self, clock: int) -> None:
        """Begin to wait: who had nothing for a while has not saved it up."""
        self.had = max(self.had, clock)

    def refund(self, tokens: int) -> None:
        """Take a turn back that led to nothing, before anybody else has one."""
        self.had -= tokens

    def correct(self, tokens: int) -> None:
        """Learn that a turn took more, or less."""
        self.owed += tokens


class _Accounts:
    """Those of one queue. Whose turn it was last says what the clock is."""

    __slots__ = ("_accounts", "clock")

    def __init__(self) -> None:
        self.clock = 0
        self._accounts: dict[Hashable, _Account] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def of(self, tenant: Hashable) -> _Account:
        """Return a tenant's account, opened if there is none; whoever had none of it for longest goes for it."""
        account = self._accounts.pop(tenant, None)
        if account is None:
            if len(self._accounts) >= _MOST_ACCOUNTS:
                del self._accounts[next(iter(self._accounts))]
            account = _Account(self.clock)
        self._accounts[tenant] = account
        return account

    def standing(self, tenant: Hashable) -> int:
        """Return what a tenant has had when it waits next; who is not known is not noted for that."""
        account = self._accounts.get(tenant)
        return self.clock if account is None else max(account.had, self.clock)

    def begin_turn(self, account: _Account) -> None:
        """Set the clock."""
        self.clock = max(self.clock, account.had)

    def refund(self, tenant: Hashable, tokens: int) -> None:
        """Take a turn back that led to nothing."""
        self.of(tenant).refund(tokens)

    def correct(self, tenant: Hashable, tokens: int) -> None:
        """Learn that a turn took more, or less, than was thought."""
        account = self._accounts.get(tenant)
        if account is not None:
            account.correct(tokens)


class _Line(Generic[R]):
    """What one tenant has waiting: a line for each of its parties, next whoever has had least of late."""

    __slots__ = ("_clock", "_turns", "lines")

    def __init__(self) -> None:
        self.lines: dict[Hashable, deque[R]] = {}
        self._turns: list[tuple[int, int, Hashable]] = []
        self._clock = 0

    def __bool__(self) -> bool:
        return bool(self.lines)

    def push(self, request: R) -> None:
        line = self.lines.get(request.party)
        if line is None:
            line = self.lines[request.party] = deque()
            heappush(self._turns, (self._clock, next(_arrivals), request.party))
        line.append(request)

    def pop(self) -> R:
        self._clock, _, party = self._turns[0]
        line = self.lines[party]
        request = line.popleft()
        if line:
            heapreplace(self._turns, (self._clock + request.tokens, next(_arrivals), party))
        else:
            heappop(self._turns)
            del self.lines[party]
        return request

    def sweep(self) -> None:
        self.lines = {party: alive for party, line in self.lines.items() if (alive := deque(_alive(line)))}
        self._turns = [turn for turn in self._turns if turn[2] in self.lines]
        heapify(self._turns)


class _Level(Generic[R]):
    """One priority: next is the tenant that has had the least, by what its requests cost."""

    __slots__ = ("_accounts", "_passed", "_turns", "lines")

    def __init__(self, accounts: _Accounts) -> None:
        self.lines: dict[Hashable, _Line[R]] = {}
        self._accounts = accounts
        self._turns: list[tuple[int, int, Hashable]] = []
        self._passed = 0

    def __bool__(self) -> bool:
        return bool(self.lines)

    @property
    def is_overdue(self) -> bool:
        """Whether enough of higher ones went before."""
        return self._passed >= PATIENCE

    def pass_by(self) -> None:
        """Note that a higher one went before."""
        self._passed += 1

    def push(self, request: R) -> None:
        tenant = request.tenant
        line = self.lines.get(tenant)
        if line is None:
            line = self.lines[tenant] = _Line()
            account = self._accounts.of(tenant)
            account.catch_up(self._accounts.clock)
            heappush(self._turns, (account.had, next(_arrivals), tenant))
        line.push(request)

    def pop(self) -> R:
        self._passed = 0
        account, tenant = self._next()
        line = self.lines[tenant]
        request = line.pop()
        if request.is_waiting:
            self._accounts.begin_turn(account)
            request.charged = request.tokens
            account.charge(request.charged)
        if line:
            heapreplace(self._turns, (account.had, next(_arrivals), tenant))
        else:
            heappop(self._turns)
            del self.lines[tenant]
        return request

    def entries(self) -> Iterator[R]:
        return itertools.chain(*(line for lines in self.lines.values() for line in lines.lines.values()))

    def sweep(self) -> None:
        for line in self.lines.values():
            line.sweep()
        self.lines = {tenant: line for tenant, line in self.lines.items() if line}
        self._turns = [turn for turn in self._turns if turn[2] in self.lines]
        heapify(self._turns)

    def _next(self) -> tuple[_Account, Hashable]:
        """Return whose turn it is; turns had at other priorities meanwhile count."""
        while True:
            had, _, tenant = self._turns[0]
            account = self._accounts.of(tenant)
            if account.had <= had:
                return account, tenant
            heapreplace(self._turns, (account.had, next(_arrivals), tenant))


class _Lane(Generic[R]):
    """Those that wait for the same: who was with a node before, then by priority, and there the tenants in turn."""

    __slots__ = ("_accounts", "_levels", "_order", "front")

    def __init__(self, accounts: _Accounts) -> None:
        self.front: deque[R] = deque()
        self._accounts = accounts
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
            level = self._levels[prio] = _Level(self._accounts)
            insort(self._order, -prio)
        level.push(request)

    def pop(self) -> R:
        """Take the first entry; only after a look at its rank, and if there is one."""
        if self.front:
            return self.front.popleft()
        chosen = self._levels[-self._order[0]]
        if len(self._order) > 1:
            lower = [level for prio in self._order[1:] if (level := self._levels[-prio])]
            chosen = next((level for level in lower if level.is_overdue), chosen)
            for level in lower:
                level.pass_by()
        return chosen.pop()

    def entries(self) -> Iterator[R]:
        return itertools.chain(self.front, *(level.entries() for level in self._levels.values()))

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
        backlog: Sums over those that wait for their turn alone.
    """

    __slots__ = (
        "_accounts",
        "_dead",
        "_main",
        "_passed",
        "_waiting_of",
        "awake",
        "backlog",
        "count",
        "due",
        "parked",
        "size_bytes",
    )

    def __init__(self) -> None:
        self.count = 0
        self.due = 0
        self.size_bytes = 0
        self.parked: dict[Demand, _Lane[R]] = {}
        self.awake: dict[Demand, None] = {}
        self._accounts = _Accounts()
        self._main: _Lane[R] = _Lane(self._accounts)
        self._dead = 0
        self._passed = 0
        """Of higher priority that went before parked ones which were due."""
        self.backlog = Backlog(PATIENCE)
        self._waiting_of: dict[Hashable, int] = {}
        """By party, and by tenant."""

    def has_room(self, party: Hashable, tenant: Hashable, size: int, most: int, most_bytes: int) -> bool:
        """Say whether one more may wait.

        The bound is for all together, but nobody can use it up for others: half as much again is for parties that have
        little waiting, and another half for tenants that have. So one that fills the queue, over however many
        connections, is told to come later, and the others are not.
        """
        few = max(1, most // _NEWCOMER)
        halves = 2
        if self._waiting_of.get(party, 0) < few:
            halves = 3 if self._waiting_of.get(tenant, 0) >= few else 4
        return 2 * self.count < halves * most and 2 * (self.size_bytes + size) <= halves * most_bytes

    def push(self, request: R) -> None:
        """Add a new request at the end of its client's line."""
        self._main.push(request)
        self._count_in(request)
        self.backlog.add(request)

    def push_front(self, request: R) -> None:
        """Add a request that has been with a node: it has waited before."""
        self._main.front.appendleft(request)
        self._count_in(request)
        self.backlog.add(request, is_front=True)

    def push_begun(self, request: R) -> None:
        """Add a request that was begun at another broker: behind those that were with a node of this one."""
        self._main.front.append(request)
        self._count_in(request)
        self.backlog.add(request, is_front=True)

    def park(self, request: R, *, has_begun: bool) -> None:
        """Set a request aside that none of the free nodes may take, so that it does not hold up the others."""
        self._accounts.refund(request.tenant, request.charged)
        request.charged = 0
        lane = self.parked.get(request.demand)
        if lane is None:
            lane = self.parked[request.demand] = _Lane(self._accounts)
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

    def settle(self, request: R, tokens: int) -> None:
        """Note what a request really took, at its end."""
        self._accounts.correct(request.tenant, tokens - request.charged)

    def before(self, request: R) -> Before:
        """Return what has its turn before a request that waits for its own, roughly."""
        return self.backlog.before(request, self._accounts.standing)

    def before_new(self, priority: int, tenant: Hashable, party: Hashable) -> Before:
        """Return what would have its turn before a request of somebody that comes now, roughly."""
        return self.backlog.before_new(priority, tenant, party, self._accounts.standing)

    def waiting(self) -> list[R]:
        """List what waits, for a look from outside."""
        return [request for lane in (self._main, *self.parked.values()) for request in _alive(lane.entries())]

    @property
    def tell_every_s(self) -> float:
        """Return how often those who wait hear where they stand: so that all of them together cost little."""
        return max(_TELL_EVERY_S, self.count / _TOLD_PER_S)

    @property
    def remembered(self) -> int:
        """Return of how many tenants it is known what they have had."""
        return len(self._accounts)

    @property
    def entries(self) -> int:
        """Return how many entries there are, the dead ones included."""
        return self.count + self._dead

    def _next_lane(self, is_met: Callable[[Demand], bool]) -> _Lane[R] | None:
        """Return the lane whose first entry is due; the parked ones come before equals, for they were due before."""
        main = self._main
        if self.awake:
            is_overdue = self._passed >= PATIENCE
            for demand in sorted(self.awake, key=lambda demand: self.parked[demand].rank, reverse=True):
                lane = self.parked[demand]
                if main.rank > lane.rank > -math.inf and not is_overdue:
                    self._passed += 1
                    break
                del self.awake[demand]
                if lane and is_met(demand):
                    self._passed = 0
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
        for name in {request.party, request.tenant}:
            self._waiting_of[name] = self._waiting_of.get(name, 0) + 1

    def _count_out(self, request: R) -> None:
        request.is_waiting = False
        self.count -= 1
        if request.is_parked:
            request.is_parked = False
        else:
            self.due -= 1
            self.backlog.take(request)
        self.size_bytes -= len(request.ask.body)
        for name in {request.party, request.tenant}:
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
