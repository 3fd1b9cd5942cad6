"""May a request go out, by what its key and its tenant have had; and what it took: transactions on the usage file.

A request that is let in has a *reservation* from before it goes out until it is settled, and what is reserved counts
like what was had. So a budget is never overdrawn by more than the one request that reaches its end: not by many at
once, not by several bridges, not if one of them dies. What a dead bridge had reserved is settled by the others, or by
the next one, as if all of it had been used.

Everything here blocks, and runs in the thread of `ledger_thread.py`. Time comes in.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from ..protocol.api_keys import Limits
from ..protocol.usage_file import day_of, month_of, next_month

SIGN_EVERY_S: Final = 2.0
REPLAY_S: Final = 60.0
"""So long a broker gives an answer again instead of computing it, as it comes (twice its --request-timeout)."""
DEAD_AFTER_S: Final = 15.0
"""Without a sign of life a bridge is dead: seven were due. One that was only stopped finds its requests settled."""
_MINUTE_S: Final = 60.0
Limit = Literal["rpm", "tpm", "concurrency", "budget"]


class Subject(NamedTuple):
    """Whose limits: a key's by its name, or ("" as name, None as that of counts) all of a tenant."""

    tenant: str
    name: str | None
    limits: Limits


class Reservation(NamedTuple):
    """A request that wants to go out.

    Attributes:
        rid: Its name on the wire. Equal ones are one request, and counted once while it runs.
        subjects: Whose limits it has to keep to.
        requests: 0 for the further answers to one request.
        prompt_tokens, completion_tokens: What it is thought to take.
        most: What it can take.
        is_named: Whether its caller may ask for it again, by an Idempotency-Key.
    """

    rid: bytes
    tenant: str
    name: str
    model: str
    subjects: tuple[Subject, ...]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    most: int
    is_named: bool = False


class Settlement(NamedTuple):
    """What a request took. `is_whole`: it was answered to its end, so a broker may give it again."""

    reservation: Reservation
    model: str
    prompt_tokens: int
    completion_tokens: int
    has_failed: bool
    is_whole: bool = False


class Left(NamedTuple):
    """How much of a minute's limit is left, and in how long all of it is there again."""

    limit: int
    left: int
    reset_s: float


class Verdict(NamedTuple):
    """Whether a request may go out: `refused_by` None = it may."""

    requests: Left | None = None
    tokens: Left | None = None
    refused_by: Limit | None = None
    limit: int = 0
    retry_after_s: float = 0.0
    is_of_tenant: bool = False


class Ledger:
    """One bridge's view of the usage file."""

    def __init__(self, connection: sqlite3.Connection, bridge: str) -> None:
        self._db = connection
        self._bridge = bridge
        self._signed_at = -SIGN_EVERY_S

    def sign(self, uptime: float, now: float) -> None:
        """Give a sign of life, and settle what dead bridges left.

        `uptime` is the machine's, which nobody sets: a clock that is set makes no bridge dead, and keeps none alive.
        """
        if 0 <= uptime - self._signed_at < SIGN_EVERY_S:
            return
        self._signed_at = uptime
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.execute("INSERT OR REPLACE INTO bridges VALUES(?, ?)", (self._bridge, uptime))
            dead = self._db.execute(
                "SELECT rid, tenant, name, model, requests, prompt_tokens, completion_tokens FROM reservations"
                " WHERE bridge NOT IN (SELECT bridge FROM bridges WHERE seen BETWEEN ? AND ?)",
                (uptime - DEAD_AFTER_S, uptime + DEAD_AFTER_S),  # much later: before the machine began anew
            ).fetchall()
            for rid, tenant, name, model, requests, prompt, completion in dead:
                self._db.execute("DELETE FROM reservations WHERE rid = ?", (rid,))
                self._add((tenant, name, model), (requests, 0, 1, prompt, completion), now)
            self._db.execute(
                "DELETE FROM bridges WHERE seen NOT BETWEEN ? AND ?",
                (uptime - 10 * DEAD_AFTER_S, uptime + DEAD_AFTER_S),
            )
            self._db.execute("DELETE FROM settled WHERE at NOT BETWEEN ? AND ?", (now - REPLAY_S, now + REPLAY_S))

    def work(self, reserve: Sequence[Reservation], settle: Iterable[Settlement], now: float) -> list[Verdict]:
        """Settle what has ended, then decide on what wants to go out; all in one transaction."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            for settlement in settle:
                self._settle(settlement, now)
            return [self._reserve(reservation, now) for reservation in reserve]

    def close(self) -> None:
        """Leave; what is still reserved is settled by others, in time."""
        self._db.close()

    # --- out ---------------------------------------------------------------------------------------------------------

    def _reserve(self, wanted: Reservation, now: float) -> Verdict:
        known = self._db.execute("SELECT 1 FROM reservations WHERE rid = ?", (wanted.rid,)).fetchone()
        if known is not None:  # its caller came back for it: the same request
            self._db.execute("UPDATE reservations SET bridge = ? WHERE rid = ?", (self._bridge, wanted.rid))
            return Verdict()
        if wanted.is_named and self._was_settled(wanted.rid, now):
            wanted = wanted._replace(prompt_tokens=0, completion_tokens=0, most=0)
        refusals = [refusal for subject in wanted.subjects for refusal in self._refusals(subject, wanted, now)]
        if refusals:  # the one that takes longest: who waits for another would be refused again
            return max(refusals, key=lambda refusal: refusal.retry_after_s)
        left = [self._take(subject, wanted, now) for subject in wanted.subjects]
        row = (*wanted[:1], self._bridge, *wanted[1:4], *wanted[5:9], now)
        self._db.execute("INSERT INTO reservations VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return Verdict(_tightest(pair[0] for pair in left), _tightest(pair[1] for pair in left))

    def _was_settled(self, rid: bytes, now: float) -> bool:
        query = "SELECT 1 FROM settled WHERE rid = ? AND at >= ?"
        return self._db.execute(query, (rid, now - REPLAY_S)).fetchone() is not None

    def _refusals(self, subject: Subject, wanted: Reservation, now: float) -> Iterator[Verdict]:
        limits, is_of_tenant = subject.limits, subject.name is None
        if limits.budget is not None:
            had, reserved = self._had(subject, now)
            if had + reserved >= limits.budget:
                # What is only reserved may come free; else it is the next month that helps.
                wait_s = 1.0 if had < limits.budget else next_month(now) - now
                yield Verdict(None, None, "budget", limits.budget, wait_s, is_of_tenant)
        if limits.concurrency is not None:
            count, wait_s = self._under_way(subject, now)
            if count >= limits.concurrency:
                yield Verdict(None, None, "concurrency", limits.concurrency, wait_s, is_of_tenant)
        for what, limit, wants in (("rpm", limits.rpm, wanted.requests), ("tpm", limits.tpm, _tokens(wanted))):
            if limit is None or not wants:
                continue
            left = self._left(subject, what, limit, now)
            missing = min(wants, limit) - left
            if missing > 0:
                told, wait_s = _told(limit, left), missing * _MINUTE_S / limit
                if what == "rpm":
                    yield Verdict(told, None, "rpm", limit, wait_s, is_of_tenant)
                else:
                    yield Verdict(None, told, "tpm", limit, wait_s, is_of_tenant)

    def _had(self, subject: Subject, now: float) -> tuple[int, int]:
        """Return the tokens that a month has seen, and those that are reserved."""
        whose = (subject.tenant, subject.name, subject.name)
        (had,) = self._db.execute(
            "SELECT TOTAL(tokens) FROM months WHERE month = ? AND tenant = ? AND (? IS NULL OR name = ?)",
            (month_of(now), *whose),
        ).fetchone()
        (reserved,) = self._db.execute(
            "SELECT TOTAL(most) FROM reservations WHERE tenant = ? AND (? IS NULL OR name = ?)", whose
        ).fetchone()
        return int(had), int(reserved)

    def _under_way(self, subject: Subject, now: float) -> tuple[int, float]:
        """Return how many run, and when the next of them may end: each is on average half done."""
        values = (now, subject.tenant, subject.name, subject.name)
        query = "SELECT COUNT(*), AVG(? - at) FROM reservations WHERE tenant = ? AND (? IS NULL OR name = ?)"
        count, age_s = self._db.execute(query, values).fetchone()
        return int(count), max(1.0, age_s / count) if count else 1.0

    def _left(self, subject: Subject, what: str, limit: int, now: float) -> float:
        """Return how much of a minute's limit is left: it comes back evenly, and no more than all of it."""
        row = self._db.execute(
            "SELECT left, at FROM buckets WHERE tenant = ? AND name = ? AND what = ?",
            (subject.tenant, _bucket(subject), what),
        ).fetchone()
        if row is None:
            return float(limit)
        left, at = float(row[0]), float(row[1])
        if at - now > _MINUTE_S:  # the clock was set back since: nobody waits until it is there again
            return float(limit)
        return min(float(limit), left + max(0.0, now - at) * limit / _MINUTE_S)

    def _take(self, subject: Subject, wanted: Reservation, now: float) -> tuple[Left | None, Left | None]:
        limits = subject.limits
        return (
            self._draw(subject, "rpm", limits.rpm, wanted.requests, now),
            self._draw(subject, "tpm", limits.tpm, _tokens(wanted), now),
        )

    def _draw(self, subject: Subject, what: str, limit: int | None, wants: int, now: float) -> Left | None:
        if limit is None:
            return None
        left = min(float(limit), self._left(subject, what, limit, now) - wants)
        row = (subject.tenant, _bucket(subject), what, left, now)
        self._db.execute("INSERT OR REPLACE INTO buckets VALUES(?, ?, ?, ?, ?)", row)
        return _told(limit, left)

    # --- back --------------------------------------------------------------------------------------------------------

    def _settle(self, ended: Settlement, now: float) -> None:
        wanted = ended.reservation
        # It is another bridge's where its caller has gone on there, and nobody's where this one was taken for dead.
        mine = (wanted.rid, self._bridge)
        row = self._db.execute("SELECT most FROM reservations WHERE rid = ? AND bridge = ?", mine).fetchone()
        if row is None:
            return
        self._db.execute("DELETE FROM reservations WHERE rid = ?", (wanted.rid,))
        prompt, completion = (ended.prompt_tokens, ended.completion_tokens) if row[0] else (0, 0)
        counts = (wanted.requests, int(ended.has_failed), 0, prompt, completion)
        self._add((wanted.tenant, wanted.name, ended.model), counts, now)
        if wanted.is_named and ended.is_whole:
            self._db.execute("INSERT OR REPLACE INTO settled VALUES(?, ?)", (wanted.rid, now))
        for subject in wanted.subjects if row[0] else ():
            self._draw(subject, "tpm", subject.limits.tpm, prompt + completion - _tokens(wanted), now)

    def _add(self, whose: tuple[str, str, str], counts: tuple[int, int, int, int, int], now: float) -> None:
        self._db.execute(
            "INSERT INTO usage VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " requests = requests + excluded.requests, failed = failed + excluded.failed,"
            " unsettled = unsettled + excluded.unsettled, prompt_tokens = prompt_tokens + excluded.prompt_tokens,"
            " completion_tokens = completion_tokens + excluded.completion_tokens",
            (day_of(now), *whose, *counts),
        )
        self._db.execute(
            "INSERT INTO months VALUES(?, ?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens",
            (month_of(now), *whose[:2], counts[3] + counts[4]),
        )


def _tokens(wanted: Reservation) -> int:
    return wanted.prompt_tokens + wanted.completion_tokens


def _told(limit: int, left: float) -> Left:
    return Left(limit, max(0, int(left)), (limit - left) * _MINUTE_S / limit)


def _bucket(subject: Subject) -> str:
    return "*" if subject.name is None else f"={subject.name}"


def _tightest(lefts: Iterable[Left | None]) -> Left | None:
    return min((left for left in lefts if left is not None), key=lambda left: left.left, default=None)
