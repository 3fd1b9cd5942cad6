"""When a request that waits will be started, and how sure that is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.broker.backlog import Before
from zmqrt.broker.predictor import Forecast, WaitPredictor
from zmqrt.broker.service_times import NO_WORK, Workload

ONE = Workload(1, 0, 100)
TEN = Before(Workload(10, 0, 1000), Workload(10, 0, 1000))
NOBODY = Before(NO_WORK, NO_WORK)


def experienced(took_s: float = 2.0) -> WaitPredictor:
    """Give a predictor that has seen requests of a hundred tokens."""
    predictor = WaitPredictor()
    for _ in range(100):
        predictor.times.learn(ONE, took_s)
    return predictor


def foreseen(predictor: WaitPredictor, before: Before = TEN, at_once: int = 4) -> Forecast:
    """Return a forecast that there is."""
    forecast = predictor.foresee(before, ONE, 0, at_once)
    assert forecast is not None
    return forecast


def test_nothing_is_said_before_the_first_answer() -> None:
    """A guess would send away whom the fleet could serve."""
    assert WaitPredictor().foresee(TEN, ONE, 0, 4) is None


def test_a_wait_is_what_comes_before_over_what_runs_at_once() -> None:
    """Ten of two seconds at four places, and the first place to be free."""
    forecast = foreseen(experienced())

    assert forecast.before == 10
    assert forecast.wait_s == pytest.approx(10 * 2 / 4 + 2 / 5, rel=0.01)
    assert forecast.run_s == pytest.approx(2.0, rel=0.01)
    assert forecast.sure_s > forecast.wait_s + forecast.run_s


def test_waits_that_turn_out_longer_are_foretold_so() -> None:
    """For their priority; of another one nothing is known by that."""
    predictor = experienced()
    forecast = foreseen(predictor)
    for _ in range(100):
        forecast = foreseen(predictor)
        predictor.learn_wait(forecast, 0, 1.5 * forecast.raw_s)

    assert foreseen(predictor).wait_s == pytest.approx(1.5 * forecast.raw_s)
    other = predictor.foresee(TEN, ONE, 1, 4)
    assert other is not None
    assert other.wait_s == other.raw_s


@given(st.lists(st.floats(0.0, 1e6), max_size=30), st.integers(0, 1000), st.integers(1, 1000))
def test_whatever_was_measured_a_forecast_is_bounded(waits: list[float], before: int, at_once: int) -> None:
    """Neither negative nor without end, and never surer than the expectation itself."""
    predictor = experienced()
    for waited_s in waits:
        predictor.learn_wait(foreseen(predictor), 0, waited_s)

    work = Workload(before, 0, 100 * before)
    forecast = foreseen(predictor, Before(work, work), at_once)
    assert forecast.raw_s / 4 <= forecast.wait_s <= 4 * forecast.raw_s
    assert forecast.wait_s + forecast.run_s <= forecast.sure_s


def test_what_has_nothing_before_it_waits_for_the_first_place() -> None:
    """Of many that began at any time one ends soon."""
    assert foreseen(experienced(), NOBODY, 99).wait_s == pytest.approx(0.02)
