"""Lengths counted in buckets: quantiles, differences and sums of them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.histogram import BOUNDS_S, Histogram, total

LENGTHS = st.lists(st.floats(min_value=0.0, max_value=400.0), max_size=60)


def of(lengths: list[float]) -> Histogram:
    """Count some lengths."""
    histogram = Histogram()
    for one in lengths:
        histogram.add(one)
    return histogram


@given(LENGTHS.filter(bool), st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(lengths: list[float], share: float) -> None:
    """Whatever was counted; beyond the last bound that bound is told."""
    rank = max(1, math.ceil(share * len(lengths)))
    true = sorted(lengths)[rank - 1]
    high = next((bound for bound in BOUNDS_S if true <= bound), BOUNDS_S[-1])
    low = max((bound for bound in BOUNDS_S if bound < true), default=0.0)

    told = of(lengths).quantile(share)

    assert told is not None
    assert min(low, BOUNDS_S[-1]) <= told <= high


@given(LENGTHS, LENGTHS)
def test_what_was_counted_since_is_what_came_after(first: list[float], then: list[float]) -> None:
    """The difference of two states counts only what lies between them."""
    earlier, later = of(first), of(first + then)

    assert later.since(earlier).counts == of(then).counts
    assert total([earlier, later.since(earlier)]).counts == later.counts


def test_nothing_has_no_quantile() -> None:
    """And a bound belongs to the bucket below it."""
    histogram = of([BOUNDS_S[0]])

    assert Histogram().quantile(0.5) is None
    assert histogram.counts[0] == 1


def test_one_that_began_anew_is_told_whole() -> None:
    """A broker that was started again counts from 0: less than before is no difference."""
    assert of([1.0]).since(of([1.0, 2.0])).count == 1
