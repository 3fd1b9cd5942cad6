"""How much waits for a service, and how much of it comes before one request.

The queue decides whose turn it is; here are only sums by priority, tenant and party, so that nobody has to walk the
queue to say where somebody stands. What is said is an estimate: of a tenant with requests of many sizes the mean is
taken. Who comes later may come before, so it is said twice: what waits now, and what it can become when all others that
wait go on asking, and each has the turns that the queue gives it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable
from typing import Final, NamedTuple, Protocol

from .service_times import NO_WORK, Workload

_SAMPLE: Final = 64
"""Of more tenants or parties than these, so many are looked at, and stand for all."""
_OF_LATE: Final = 0.02
"""One turn among those that tell who has them: some fifty count."""
_LEAST_SHARE: Final = 0.001
Had = Callable[[Hashable], float]
"""Tells how many tokens a tenant has had, on the clock of the queue."""


class Before(NamedTuple):
    """What has its turn before a request."""

    now: Workload
    """As things stand."""
    at_most: Workload
    """If the other tenants go on asking."""
    pace: float = 1.0
    """The share of turns that higher priorities have left to it of late."""


_NOTHING_BEFORE: Final = Before(NO_WORK, NO_WORK)


class Piece(Protocol):
    """What stands in a backlog: a request."""

    place: int
    """How many its party had put in up to and with it. Written here alone."""

    @property
    def priority(self) -> int:
        """Of which class it is."""
        raise NotImplementedError

    @property
    def party(self) -> Hashable:
        """Whose turn it takes within its tenant."""

    @property
    def tenant(self) -> Hashable:
        """Whose share of the nodes it takes."""

    @property
    def work(self) -> Workload:
        """How much it asks for."""
        raise NotImplementedError


class _Sum:
    """What some of the requests ask for; `came` counts all that ever came, those that left included."""

    __slots__ = ("came", "made", "read", "requests")

    def __init__(self) -> None:
        self.requests = self.came = 0
        self.read = self.made = 0.0

    def add(self, work: Workload) -> None:
        self.requests += 1
        self.came += 1
        self.read += work.read
        self.made += work.made

    def take(self, work: Workload) -> None:
        self.requests -= 1
        self.read -= work.read
        self.made -= work.made

    @property
    def work(self) -> Workload:
        return Workload(self.requests, self.read, self.made)


class _TenantSum(_Sum):
    __slots__ = ("parties",)

    def __init__(self) -> None:
        super().__init__()
        self.parties: dict[Hashable, _Sum] = {}


class _LevelSum(_Sum):
    __slots__ = ("tenants",)

    def __init__(self) -> None:
        super().__init__()
        self.tenants: dict[Hashable, _TenantSum] = {}


class Backlog:
    """Sums over what waits for its turn; parked requests hold up nobody, and are not among it."""

    __slots__ = ("_all", "_front", "_levels", "_patience", "_turns")

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._all = _Sum()
        self._front: dict[Piece, None] = {}
        """Those that were with a node before: first of all."""
        self._levels: dict[int, _LevelSum] = {}
        self._turns: dict[int, float] = {}
        """Which share of them each priority had of late."""

    @property
    def work(self) -> Workload:
        """All that waits."""
        return self._all.work

    def add(self, request: Piece, *, is_front: bool = False) -> None:
        """Count a request in."""
        work = request.work
        self._all.add(work)
        if is_front:
            self._front[request] = None
            return
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = _LevelSum()
        tenant = level.tenants.get(request.tenant)
        if tenant is None:
            tenant = level.tenants[request.tenant] = _TenantSum()
        party = tenant.parties.get(request.party)
        if party is None:
            party = tenant.parties[request.party] = _Sum()
        for each in (level, tenant, party):
            each.add(work)
        request.place = party.came

    def take(self, request: Piece) -> None:
        """Count a request out."""
        work = request.work
        self._all.take(work)
        if request in self._front:
            del self._front[request]
            return
        self._note_turn(request.priority)
        level = self._levels[request.priority]
        tenant = level.tenants[request.tenant]
        party = tenant.parties[request.party]
        for each in (level, tenant, party):
            each.take(work)
        if not party.requests:
            del tenant.parties[request.party]
            if not tenant.requests:
                del level.tenants[request.tenant]
                if not level.requests:
                    del self._levels[request.priority]

    def before(self, request: Piece, had: Had) -> Before:
        """Return what comes before a request that waits here."""
        if request in self._front:
            earlier = itertools.takewhile(lambda other: other is not request, self._front)
            front = _total(other.work for other in itertools.islice(earlier, _SAMPLE))
            return Before(front, front)
        party = self._levels[request.priority].tenants[request.tenant].parties[request.party]
        ahead = request.place - 1 - (party.came - party.requests)
        return self._before(request.priority, request.tenant, request.party, had, max(0, ahead))

    def before_new(self, priority: int, tenant: Hashable, party: Hashable, had: Had) -> Before:
        """Return what would come before a request of somebody that comes now."""
        return self._before(priority, tenant, party, had, None)

    def _note_turn(self, priority: int) -> None:
        turns = self._turns
        if priority not in turns:
            turns[priority] = 0.0 if turns else 1.0
        if len(turns) > 1:
            kept = {each: share * (1 - _OF_LATE) for each, share in turns.items() if share > _LEAST_SHARE}
            kept[priority] = kept.get(priority, 0.0) + _OF_LATE
            self._turns = kept

    def _pace(self, priority: int) -> float:
        """Return the share of turns that higher priorities leave; one of so many they always do."""
        if len(self._turns) < 2:
            return 1.0
        higher = sum(share for each, share in self._turns.items() if each > priority)
        return max(1 / (self._patience + 1), 1 - higher)

    def _before(self, priority: int, tenant: Hashable, party: Hashable, had: Had, ahead: int | None) -> Before:
        level = self._levels.get(priority)
        mine = _before_in_level(level, tenant, party, had, ahead) if level is not None else _NOTHING_BEFORE
        higher = lower = NO_WORK
        for other, its in self._levels.items():
            if other > priority:
                higher = higher.plus(its.work)
            elif other < priority:
                lower = lower.plus(its.work)
        front = _total(request.work for request in itertools.islice(self._front, _SAMPLE))
        # One of a lower class has its turn after so many of higher ones: so no more of these come before it, …
        begun = NO_WORK.plus(front, max(1.0, len(self._front) / _SAMPLE))
        before = begun.plus(mine.now).plus(higher, _share(self._patience * (mine.now.requests + 1), higher.requests))
        at_most = before.plus(mine.at_most).plus(mine.now, -1.0)
        # … and of those below one for so many.
        few = _share(before.requests // self._patience, lower.requests)
        return Before(before.plus(lower, few), at_most.plus(lower, few), self._pace(priority))


def _before_in_level(level: _LevelSum, tenant: Hashable, party: Hashable, had: Had, ahead: int | None) -> Before:
    """Return what of one priority comes before: each tenant's, up to where this one will have had as much."""
    own = level.tenants.get(tenant)
    mine = _before_in_tenant(own, party, ahead) if own is not None else NO_WORK
    mark = had(tenant) + mine.tokens + mine.requests
    others = [(name, its) for name, its in itertools.islice(level.tenants.items(), _SAMPLE + 1) if name != tenant]
    before, at_most, seen = NO_WORK, NO_WORK, 0
    for name, its in others:
        seen += its.requests
        turns = _turns_until(mark - had(name), its)
        before = before.plus(its.work, _share(turns, its.requests))
        at_most = at_most.plus(its.work, turns / its.requests)
    rest = level.requests - (own.requests if own is not None else 0)
    whole = rest / seen if seen else 0.0
    return Before(mine.plus(before, whole), mine.plus(at_most, whole))


def _before_in_tenant(own: _TenantSum, party: Hashable, ahead: int | None) -> Workload:
    """Return what of one tenant comes before: each party's, as much as this one has before it."""
    line = own.parties.get(party)
    count = 0 if line is None else line.requests if ahead is None else ahead
    mine = NO_WORK if line is None else NO_WORK.plus(line.work, _share(count, line.requests))
    before, seen = NO_WORK, 0
    for name, its in itertools.islice(own.parties.items(), _SAMPLE + 1):
        if name != party:
            seen += its.requests
            before = before.plus(its.work, _share(_turns_until(mine.tokens + mine.requests, its), its.requests))
    rest = own.requests - (line.requests if line is not None else 0)
    return mine.plus(before, rest / seen if seen else 0.0)


def _turns_until(tokens: float, its: _Sum) -> float:
    """Return how many turns somebody has until it has had so many tokens more; the first costs nothing beforehand."""
    if tokens < 0:
        return 0
    return 1 + tokens * its.requests // (its.read + its.made + its.requests)


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole else 0.0


def _total(works: Iterable[Workload]) -> Workload:
    total = NO_WORK
    for work in works:
        total = total.plus(work)
    return total
