"""More is asked of a fleet than it can do: what is let in is done in time, and the rest hears so at once."""

from __future__ import annotations

import statistics

import pytest

from support.overload import STEP_S, Outcome, OverloadedFleet, Pressure
from zmqrt.broker import admission
from zmqrt.broker.predictor import Forecast, WaitPredictor
from zmqrt.protocol import messages as m

Waits = list[tuple[float, float]]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Collect what was expected of each wait, and what it was."""
    found: Waits = []
    right = WaitPredictor.learn_wait

    def learn_wait(self: WaitPredictor, forecast: Forecast, priority: int, waited_s: float) -> None:
        found.append((forecast.wait_s, waited_s))
        right(self, forecast, priority, waited_s)

    monkeypatch.setattr(WaitPredictor, "learn_wait", learn_wait)
    return found


def late(outcomes: list[Outcome]) -> list[Outcome]:
    """Return those that were let in and ended more than a step after their deadline, or without an answer."""
    taken = [outcome for outcome in outcomes if not outcome.was_refused]
    return [outcome for outcome in taken if not outcome.was_answered or outcome.ended_at > outcome.deadline + STEP_S]


MIXES = [
    pytest.param(Pressure(), id="alike"),
    pytest.param(Pressure(tenants=5), id="five tenants"),
    pytest.param(Pressure(nodes=1, slots=1, ttl_s=(8.0, 20.0), seconds=100.0), id="one slot"),
]


@pytest.mark.parametrize("pressure", MIXES)
@pytest.mark.parametrize("seed", range(2))
def test_at_three_times_the_load_nothing_let_in_is_late(pressure: Pressure, seed: int) -> None:
    """And as much is done as the fleet can do; whoever is refused hears of it in the same instant."""
    outcomes = OverloadedFleet(seed, pressure).run()

    assert late(outcomes) == []
    refused = [outcome for outcome in outcomes if outcome.was_refused]
    assert all(outcome.ended_at == outcome.asked_at for outcome in refused)
    done_per_s = sum(outcome.was_answered for outcome in outcomes) / pressure.seconds
    assert done_per_s >= 0.95 * pressure.capacity_per_s


def test_classes_of_priority_are_promised_what_the_higher_ones_leave() -> None:
    """Who comes later and goes first was counted on: of what is let in next to nothing is late."""
    outcomes = OverloadedFleet(0, Pressure(tenants=2, prios=(0, 0, 1, -1))).run()

    taken = [outcome for outcome in outcomes if not outcome.was_refused]
    assert len(late(outcomes)) <= 0.02 * len(taken)
    assert {outcome.prio for outcome in taken if outcome.was_answered} == {-1, 0, 1}


def test_a_fleet_that_keeps_up_refuses_next_to_nobody() -> None:
    """Below its capacity queues come and go; who waits a little is not sent away for it."""
    outcomes = OverloadedFleet(1, Pressure(factor=0.9)).run()

    assert late(outcomes) == []
    assert sum(outcome.was_refused for outcome in outcomes) <= 0.02 * len(outcomes)


def test_waits_turn_out_as_foretold(waits: Waits) -> None:
    """Half of them within a tenth, nine of ten within a quarter."""
    OverloadedFleet(2, Pressure(tenants=3)).run()

    ratios = [actual_s / expected_s for expected_s, actual_s in waits[200:]]
    assert 0.9 <= statistics.median(ratios) <= 1.1
    assert sum(1 / 1.25 <= ratio <= 1.25 for ratio in ratios) >= 0.9 * len(ratios)


def test_who_comes_back_when_told_is_not_told_too_soon(waits: Waits) -> None:
    """What waits now has been started by then, give or take a quarter."""
    outcomes = OverloadedFleet(3, Pressure(factor=1.5, seconds=30.0)).run()

    ends = [outcome.end for outcome in outcomes if outcome.was_refused]
    told_s = [end.retry_after_ms / 1000 for end in ends if isinstance(end, m.Error)]
    waited_s = [actual_s for _, actual_s in waits[200:]]
    assert statistics.median(told_s) >= 0.75 * statistics.median(waited_s)


def let_in(*_: object) -> bool:
    """Look at nothing."""
    return True


def test_without_the_look_at_the_time_many_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug is found: who lets everybody in breaks most of its promises."""
    monkeypatch.setattr(admission, "_is_in_time", let_in)

    outcomes = OverloadedFleet(1, Pressure(seconds=20.0)).run()

    assert len(late(outcomes)) > len(outcomes) / 4
