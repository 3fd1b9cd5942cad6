"""Limits and budgets are kept on the usage file, by however many bridges write it, and whichever of them dies."""

from __future__ import annotations

import itertools
import sqlite3
from pathlib import Path

import pytest

from zmqrt.bridge_http.ledger import DEAD_AFTER_S, REPLAY_S, Ledger, Reservation, Settlement, Subject, Verdict
from zmqrt.protocol.api_keys import Limits
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.usage_file import SCHEMA_NUMBER, next_month, open_usage, read_usage

NOW = 1_796_000_000.0
"""Of 30 November 2026."""
UP = 1000.0
"""Seconds since the machine began."""
_numbers = itertools.count(1)


def wanted(
    limits: Limits | None = None, *, name: str | None = "ci", tokens: int = 10, most: int | None = None
) -> Reservation:
    """Make a request of a key, or of one whose tenant has the limits."""
    subjects = () if limits is None else (Subject("acme", name, limits),)
    rid = next(_numbers).to_bytes(16, "big")
    return Reservation(rid, "acme", "ci", "tiny", subjects, 1, tokens, 0, most or tokens)


def ended(reservation: Reservation, tokens: int) -> Settlement:
    """Say what it took."""
    return Settlement(reservation, "tiny", tokens, 0, has_failed=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a usage file."""
    return tmp_path / "usage.db"


def bridge(path: Path | None, name: str = "b1", *, after: float = 0.0) -> Ledger:
    """Open it as a bridge does."""
    ledger = Ledger(open_usage(path), name)
    ledger.sign(UP + after, NOW + after)
    return ledger


def reserve(ledger: Ledger, reservation: Reservation, now: float = NOW) -> Verdict:
    """Ask for one."""
    (verdict,) = ledger.work([reservation], [], now)
    return verdict


def test_a_budget_lets_in_the_request_that_reaches_its_end_and_no_further_one(path: Path) -> None:
    """However much it then takes; the next month has a budget of its own."""
    one, two = bridge(path), bridge(path, "b2")
    limits = Limits(budget=100)
    for number in range(10):
        request = wanted(limits)
        ledger = (one, two)[number % 2]
        assert reserve(ledger, request).refused_by is None
        ledger.work([], [ended(request, 10)], NOW)

    refused = reserve(two, wanted(limits))
    assert (refused.refused_by, refused.limit, NOW + refused.retry_after_s) == ("budget", 100, next_month(NOW))
    assert reserve(one, wanted(limits), next_month(NOW)).refused_by is None


def test_what_is_reserved_counts_for_a_budget(path: Path) -> None:
    """Of many at once only so many go out as fit if each takes all that it can; the others may come back soon."""
    one, two = bridge(path), bridge(path, "b2")
    limits = Limits(budget=100)
    requests = [wanted(limits, most=30) for _ in range(8)]
    verdicts = [reserve((one, two)[at % 2], request) for at, request in enumerate(requests)]

    assert [verdict.refused_by for verdict in verdicts] == [None] * 4 + ["budget"] * 4
    assert verdicts[-1].retry_after_s == 1.0
    for at, request in enumerate(requests[:4]):
        (one, two)[at % 2].work([], [ended(request, 5)], NOW)
    assert reserve(two, wanted(limits)).refused_by is None
    assert read_usage(path, ["tenant"])[0].prompt_tokens == 20


def test_a_budget_of_a_tenant_is_for_all_its_keys(path: Path) -> None:
    """And that of a key for all that share its name."""
    ledger = bridge(path)
    other = wanted(Limits(budget=15), name=None)._replace(name="other")
    ledger.work([other], [ended(other, 15)], NOW)
    ledger.work([], [ended(other, 15)], NOW)

    refused = reserve(ledger, wanted(Limits(budget=15), name=None))
    assert (refused.refused_by, refused.is_of_tenant) == ("budget", True)
    assert reserve(ledger, wanted(Limits(budget=15))).refused_by is None


@pytest.mark.parametrize(("limits", "limit", "each"), [(Limits(rpm=6), "rpm", 1), (Limits(tpm=60), "tpm", 10)])
def test_a_minutes_limit_comes_back_evenly_and_says_when(path: Path, limits: Limits, limit: str, each: int) -> None:
    """What is told to wait, and waits so long, is let in."""
    one, two = bridge(path), bridge(path, "b2")
    verdicts = [reserve((one, two)[number % 2], wanted(limits)) for number in range(6)]
    lefts = [verdict.requests if limit == "rpm" else verdict.tokens for verdict in verdicts]
    assert [left.left for left in lefts if left is not None] == [each * left for left in range(5, -1, -1)]

    refused = reserve(one, wanted(limits))
    assert refused.refused_by == limit
    assert refused.retry_after_s == pytest.approx(10.0)
    assert reserve(two, wanted(limits), NOW + 9.9).refused_by == limit
    assert reserve(two, wanted(limits), NOW + 10.1).refused_by is None


def test_tokens_that_were_not_taken_come_back_at_once(path: Path) -> None:
    """And what was taken beyond is missing; a request larger than a minute's limit has the whole of it."""
    ledger = bridge(path)
    limits = Limits(tpm=60)
    large = wanted(limits, tokens=500)
    assert reserve(ledger, large).refused_by is None
    assert reserve(ledger, wanted(limits)).refused_by == "tpm"
    ledger.work([], [ended(large, 20)], NOW)

    assert reserve(ledger, wanted(limits, tokens=40)).refused_by is None
    assert reserve(ledger, wanted(limits, tokens=1)).refused_by == "tpm"


def test_no_more_run_at_once_than_may(path: Path) -> None:
    """Over all bridges; who ends makes room."""
    one, two = bridge(path), bridge(path, "b2")
    limits = Limits(concurrency=2)
    first = wanted(limits)
    assert [reserve(one, request).refused_by for request in (first, wanted(limits))] == [None, None]

    refused = reserve(two, wanted(limits), NOW + 8)
    assert (refused.refused_by, refused.retry_after_s) == ("concurrency", 4.0)
    one.work([], [ended(first, 1)], NOW)
    assert reserve(two, wanted(limits)).refused_by is None


def test_a_request_counts_once_whoever_comes_back_for_it(path: Path) -> None:
    """At another bridge too, with its name on the wire; the one where it goes on says what it took."""
    one, two = bridge(path), bridge(path, "b2")
    request = wanted(Limits(budget=15))
    assert [reserve(ledger, request).refused_by for ledger in (one, two)] == [None, None]
    one.work([], [ended(request, 3)], NOW)
    assert read_usage(path) == []
    two.work([], [ended(request, 7)], NOW)

    (row,) = read_usage(path)
    assert (row.requests, row.prompt_tokens) == (1, 7)


def test_an_answer_that_is_given_again_costs_no_tokens(path: Path) -> None:
    """As long as brokers give it again; it is a request all the same."""
    ledger = bridge(path)
    request = wanted(Limits(budget=100, tpm=25))._replace(is_named=True)
    whole = ended(request, 10)._replace(is_whole=True)

    def ask(settlement: Settlement, now: float = NOW) -> tuple[int, int]:
        assert reserve(ledger, request, now).refused_by is None
        ledger.work([], [settlement], now)
        (row,) = read_usage(path, ["tenant"])
        return row.requests, row.prompt_tokens

    assert ask(ended(request, 4)) == (1, 4)  # given up: what comes next goes on with it
    assert [ask(whole) for _ in range(3)] == [(2, 14), (3, 14), (4, 14)]
    assert ask(whole, NOW + REPLAY_S + 1) == (5, 24)


def test_what_a_dead_bridge_had_reserved_is_settled_once(path: Path) -> None:
    """By the others, as if all of it had been used; until then it counts as reserved."""
    limits = Limits(budget=100)
    dead, alive = bridge(path), bridge(path, "b2")
    late = wanted(limits, tokens=60, most=95)
    reserve(dead, late)
    dead.close()

    for after in (2.0, DEAD_AFTER_S - 1):
        alive.sign(UP + after, NOW + after)
        assert read_usage(path) == []
        assert reserve(alive, wanted(limits, tokens=6), NOW + after).refused_by is (None if after == 2.0 else "budget")
    alive.sign(UP + DEAD_AFTER_S + 1, NOW + DEAD_AFTER_S + 1)
    (row,) = read_usage(path, ["tenant"])
    assert (row.requests, row.unsettled, row.prompt_tokens) == (1, 1, 60)

    again = bridge(path, "b1-again", after=DEAD_AFTER_S + 5)
    again.work([], [ended(late, 95)], NOW)
    assert read_usage(path, ["tenant"])[0].prompt_tokens == 60


def test_without_a_file_limits_are_kept_all_the_same() -> None:
    """By one bridge, until it ends."""
    ledger = bridge(None)
    assert [reserve(ledger, wanted(Limits(rpm=1))).refused_by for _ in range(2)] == [None, "rpm"]


def test_whoever_waits_as_long_as_told_is_let_in(path: Path) -> None:
    """Of two limits the one counts that takes longer."""
    ledger = bridge(path)
    request = wanted()._replace(
        subjects=(Subject("acme", "ci", Limits(rpm=60)), Subject("acme", None, Limits(rpm=1, tpm=10)))
    )
    for number in range(60):
        reserve(ledger, wanted(Limits(rpm=60)), NOW + number / 1000)
    assert reserve(ledger, wanted(Limits(rpm=1, tpm=10), name=None)).refused_by is None

    refused = reserve(ledger, request)
    assert (refused.refused_by, refused.is_of_tenant) == ("rpm", True)
    assert reserve(ledger, request, NOW + refused.retry_after_s + 0.1).refused_by is None


def test_a_clock_that_is_set_settles_nothing_and_keeps_nobody_out(path: Path) -> None:
    """However far: bridges live by the time since the machine began, and minutes come back."""
    one, two = bridge(path), bridge(path, "b2")
    running = wanted(Limits(concurrency=1, rpm=2))
    assert reserve(one, running).refused_by is None
    for now in (NOW + 1e6, NOW - 1e6):
        two.sign(UP + 3, now)
        one.sign(UP + 3, now)
    assert read_usage(path) == []
    one.work([], [ended(running, 1)], NOW - 1e6)
    assert reserve(two, wanted(Limits(rpm=2)), NOW - 1e6).refused_by is None

    bridge(path, "b3", after=5.0 - UP)  # the machine began anew
    assert [row.unsettled for row in read_usage(path, ["tenant"])] == [1]


def test_files_of_others_are_left_alone(path: Path) -> None:
    """Of another program, of a later version; for reading, too."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE dashboards(id)")
    raw = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        open_usage(path)
    assert path.read_bytes() == raw

    later = path.with_name("later.db")
    open_usage(later).close()
    with sqlite3.connect(later) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_NUMBER + 1}")
    for read in (open_usage, read_usage):
        with pytest.raises(ConfigurationError, match="another version"):
            read(later)
