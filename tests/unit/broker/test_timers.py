"""Deadlines of many things: never early, soon after, and forgotten at once when they are cleared."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zmqrt.broker.timers import PER_SECOND, TimerQueue


class Thing:
    """Something with a deadline."""

    def __init__(self) -> None:
        self.slot = 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 1e6))
def test_everything_is_due_at_its_time_and_not_before(deadlines: list[float], now: float) -> None:
    """At most one slot late."""
    timers: TimerQueue[Thing] = TimerQueue()
    things = {Thing(): when for when in deadlines}
    for thing, when in things.items():
        timers.set(thing, when)

    due = timers.due(now)

    assert all(things[thing] <= now for thing in due)
    assert all(when > now - 1 / PER_SECOND - 1e-6 for thing, when in things.items() if thing not in due)
    assert len(timers) == len(things) - len(due)
    if len(timers):
        assert timers.due(timers.next())


def test_a_deadline_moves_and_can_be_cleared() -> None:
    """A thing has at most one."""
    timers: TimerQueue[Thing] = TimerQueue()
    early, late, gone = Thing(), Thing(), Thing()
    for thing in (early, late, gone):
        timers.set(thing, 5.0)

    timers.set(early, 1.0)
    timers.set(late, 9.0)
    timers.clear(gone)
    timers.clear(gone)

    assert timers.due(1.02) == [early]
    assert timers.due(5.02) == []
    assert timers.due(9.02) == [late]
    assert (timers.next(), len(timers)) == (math.inf, 0)


def test_a_thousand_cleared_deadlines_leave_nothing() -> None:
    """They are not kept until their time comes."""
    timers: TimerQueue[Thing] = TimerQueue()
    for _ in range(1000):
        thing = Thing()
        timers.set(thing, 30.0)
        timers.clear(thing)

    assert timers.next() == math.inf
    assert len(timers) == 0
