"""Deadlines of many things: never early, soon after, and forgotten at once when they are cleared."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zmqrt.broker.timers import PER_SECOND, Wheel


class Thing:
    """Something with a deadline."""

    def __init__(self) -> None:
        self.slot = 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 1e6))
def test_everything_is_due_at_its_time_and_not_before(deadlines: list[float], now: float) -> None:
    """At most one slot late."""
    wheel: Wheel[Thing] = Wheel()
    things = {Thing(): when for when in deadlines}
    for thing, when in things.items():
        wheel.set(thing, when)

    due = wheel.due(now)

    assert all(things[thing] <= now for thing in due)
    assert all(when > now - 1 / PER_SECOND - 1e-6 for thing, when in things.items() if thing not in due)
    assert len(wheel) == len(things) - len(due)
    if len(wheel):
        assert wheel.due(wheel.next())


def test_a_deadline_moves_and_can_be_cleared() -> None:
    """A thing has at most one."""
    wheel: Wheel[Thing] = Wheel()
    early, late, gone = Thing(), Thing(), Thing()
    for thing in (early, late, gone):
        wheel.set(thing, 5.0)

    wheel.set(early, 1.0)
    wheel.set(late, 9.0)
    wheel.clear(gone)
    wheel.clear(gone)

    assert wheel.due(1.02) == [early]
    assert wheel.due(5.02) == []
    assert wheel.due(9.02) == [late]
    assert (wheel.next(), len(wheel)) == (math.inf, 0)


def test_a_thousand_cleared_deadlines_leave_nothing() -> None:
    """They are not kept until their time comes."""
    wheel: Wheel[Thing] = Wheel()
    for _ in range(1000):
        thing = Thing()
        wheel.set(thing, 30.0)
        wheel.clear(thing)

    assert wheel.next() == math.inf
    assert len(wheel) == 0
