"""Timers: what follows from the three settings, and how waits grow."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.timing import Backoff, Timing


def test_the_defaults_are_those_of_the_design() -> None:
    """Five, ten and thirty seconds give the rest."""
    timing = Timing()

    assert (timing.heartbeat_send_s, timing.suspect_s, timing.remove_s, timing.dedupe_s) == (2.5, 5.5, 20.0, 60.0)


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_backoff_stays_within_its_bounds(seed: int, failures: int) -> None:
    """Each wait lies between nothing and a ceiling that doubles up to the most."""
    backoff = Backoff(random.Random(seed), first_s=0.05, most_s=5.0)
    for failure in range(failures):
        assert 0 <= backoff.next_delay_s() <= min(5.0, 0.05 * 2**failure)

    backoff.reset()
    assert backoff.next_delay_s() <= 0.05
