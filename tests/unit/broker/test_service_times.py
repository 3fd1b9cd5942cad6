"""How long a request takes, learned from those that were answered."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.broker.service_times import NO_WORK, ServiceTimes, Workload

sizes = st.integers(0, 10_000)


@given(st.lists(st.tuples(sizes, sizes, st.floats(0.0, 1000.0)), min_size=1, max_size=50), sizes, sizes)
def test_whatever_was_learned_more_work_takes_no_less(
    answers: list[tuple[int, int, float]], read: int, made: int
) -> None:
    """And nothing takes less than no time."""
    times = ServiceTimes()
    for prompt, answer, took_s in answers:
        times.learn(Workload(1, prompt, answer), took_s)

    expected_s = times.expected_s(Workload(1, read, made))
    assert 0 <= expected_s <= times.expected_s(Workload(1, read + 1, made)) + 1e-9
    assert expected_s <= times.expected_s(Workload(1, read, made + 1)) + 1e-9
    assert times.expected_s(NO_WORK) == 0


@pytest.mark.parametrize("seed", range(5))
def test_times_by_size_are_learned(seed: int) -> None:
    """So much each, for each token read and for each made; roughly right after some hundred answers."""
    chance, times = random.Random(seed), ServiceTimes()
    for _ in range(3000):
        read, made = chance.choice([10, 100, 1000]), chance.choice([8, 64, 256])
        times.learn(Workload(1, read, made), 0.1 + read * 0.0005 + made * 0.01)

    for read, made in ((10, 8), (1000, 8), (10, 256), (1000, 256)):
        assert times.expected_s(Workload(1, read, made)) == pytest.approx(0.1 + read * 0.0005 + made * 0.01, rel=0.2)
    assert times.relative_error < 0.1


def test_a_fleet_that_has_become_slower_is_known_as_such() -> None:
    """What it did before is forgotten."""
    times = ServiceTimes()
    for took_s in [1.0] * 50 + [3.0] * 150:
        times.learn(Workload(1, 10, 10), took_s)

    assert times.expected_s(Workload(1, 10, 10)) == pytest.approx(3.0, rel=0.05)
