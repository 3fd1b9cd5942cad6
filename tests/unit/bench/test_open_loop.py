"""The client that never waits: what it sends when, and how it counts what becomes of that."""

from __future__ import annotations

import pytest
from open_loop import Ask, Ledger, OpenOrder

from zmqrt.protocol import messages as m

ORDER = OpenOrder(0, 10.0, rate=100.0, deadline_s=1.0, service="toy", body=b"x", seed=7, return_share=1.0, settle_s=2.0)


def send_all(ledger: Ledger, now: float) -> list[bytes]:
    """Send what is due; return the ids."""
    rids: list[bytes] = []
    for ask in ledger.take_due(now):
        rids.append(len(ledger.pending).to_bytes(16, "big"))
        ask.sent_at = now
        ledger.pending[rids[-1]] = ask
    return rids


def test_the_same_seed_gives_the_same_arrivals_at_about_the_rate() -> None:
    """So that each load can be repeated."""
    first, second = (Ledger(ORDER, 0.0).take_due(10.0) for _ in range(2))

    assert [ask.due_at for ask in first] == [ask.due_at for ask in second]
    assert len(first) == pytest.approx(1000, rel=0.1)


def test_who_is_told_to_come_back_comes_back_then() -> None:
    """Once, and whether it was taken in then is counted apart."""
    ledger = Ledger(ORDER, 0.0)
    rids = send_all(ledger, 3.0)
    for rid in rids:
        ledger.take(m.Error(rid, 429, "queue_full", True, 500, "full"), 3.01)

    returned = [ask for ask in ledger.take_due(3.51) if ask.is_return]
    assert len(returned) == len(rids)
    for number, ask in enumerate(returned):
        ledger.pending[bytes([number % 256, number // 256])] = ask
    for number in range(len(returned)):
        rid = bytes([number % 256, number // 256])
        ledger.take(m.Final(rid, 1, {}, b"") if number else m.Error(rid, 429, "queue_full", True, 500, "full"), 3.6)

    outcome = ledger.outcome(0.0)
    assert (outcome.returned, outcome.returned_in) == (len(rids), len(rids) - 1)
    assert outcome.rejected_most_ms > 0
    assert not [ask for ask in ledger.take_due(9.99) if ask.is_return]


def test_what_comes_too_late_is_no_goodput_and_is_told() -> None:
    """Each end after its deadline by how much; what times out, what fails, and what has no end at all."""
    ledger = Ledger(ORDER, 0.0)
    send_all(ledger, 3.0)
    ledger.pending = dict(list(ledger.pending.items())[:5])
    in_time, late, timed_out, failed, _ = ledger.pending

    ledger.take(m.Final(in_time, 1, {}, b""), 3.5)
    ledger.take(m.Final(late, 1, {}, b""), 4.25)
    ledger.take(m.Error(timed_out, 504, "deadline_exceeded", False, 0, "late"), 3.99)
    ledger.take(m.Error(failed, 500, "model_raised", False, 0, "broken"), 3.5)

    outcome = ledger.outcome(0.0)
    assert outcome.goodput == pytest.approx(1 / 8.0)
    assert outcome.overdue_ms == [250.0]
    assert (outcome.timed_out, outcome.failed, outcome.unanswered, outcome.answered) == (1, 1, 1, 2)


def test_what_is_answered_while_queues_still_fill_is_no_goodput() -> None:
    """Nor what is answered after the asking."""
    ledger = Ledger(ORDER, 0.0)
    ledger.pending = {b"a": Ask(0.9, 0.9, is_return=False, is_after=False)}
    ledger.take(m.Final(b"a", 1, {}, b""), 1.0)
    ledger.pending = {b"b": Ask(9.9, 9.9, is_return=False, is_after=False)}
    ledger.take(m.Final(b"b", 1, {}, b""), 10.1)

    assert ledger.outcome(0.0).goodput == 0
