"""The schedule of faults: drawn from a seed, spread over the time, complete."""

from __future__ import annotations

import random
from collections import Counter

from chaos.plan import FREEZE_FACTORS, FaultKind, make_schedule, usual_counts
from hypothesis import given
from hypothesis import strategies as st

COUNTS = st.dictionaries(st.sampled_from(list(FaultKind)), st.integers(0, 30))


@given(COUNTS, st.integers(), st.floats(1, 600), st.floats(0.2, 30))
def test_a_schedule_holds_what_was_asked_for(
    counts: dict[FaultKind, int], seed: int, duration_s: float, eviction_s: float
) -> None:
    """So many of each kind, in order, none at the very beginning or end; what lasts outlasts the eviction time."""
    faults = make_schedule(random.Random(seed), counts, duration_s, eviction_s)

    assert Counter(fault.kind for fault in faults) == Counter({kind: n for kind, n in counts.items() if n})
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(0.04 * duration_s < fault.at_s < 0.96 * duration_s for fault in faults)
    for fault in faults:
        if fault.kind.lasts:
            assert FREEZE_FACTORS[0] * eviction_s <= fault.lasts_s <= FREEZE_FACTORS[1] * eviction_s
        else:
            assert fault.lasts_s == 0


def test_a_seed_is_always_the_same_schedule() -> None:
    """So a failure can be looked at again."""
    counts = usual_counts(60)

    assert make_schedule(random.Random(7), counts, 60, 2) == make_schedule(random.Random(7), counts, 60, 2)
    assert make_schedule(random.Random(7), counts, 60, 2) != make_schedule(random.Random(8), counts, 60, 2)


def test_a_minute_brings_what_is_promised() -> None:
    """At least twenty killed workers, five frozen ones and five killed brokers; of each kind one in a short run."""
    minute, moment = usual_counts(60), usual_counts(1)

    assert minute[FaultKind.WORKER_KILL] >= 20
    assert minute[FaultKind.WORKER_FREEZE] >= 5
    assert minute[FaultKind.BROKER_KILL] >= 5
    assert set(moment.values()) == {1}


def test_every_kind_names_whom_it_hits_and_how() -> None:
    """By the words of its name."""
    assert {kind.role for kind in FaultKind} == {"worker", "broker"}
    assert {kind.action for kind in FaultKind} == {"kill", "freeze", "partition", "restart"}
    assert {kind.action for kind in FaultKind if kind.lasts} == {"freeze", "partition"}
