"""Where the time of a request went."""

from __future__ import annotations

from zmqrt.protocol.request_trace import Attempt, Spent, spent


def attempt(**given: object) -> Attempt:
    """Make an attempt that began after a second."""
    fields: dict[str, object] = {"node": "a", "dispatched_s": 1.0, "from_unit": 0, "units": 0, **given}
    return Attempt(**fields)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_the_parts_of_an_answered_request() -> None:
    """Queue, the way to the engine, prefill by the node's own clock, decode."""
    one = attempt(first_s=2.0, last_s=4.5, ended_s=5.0, units=9, prefill_s=0.75)

    assert spent(5.0, [one]) == Spent(queue_s=1.0, dispatch_s=0.25, prefill_s=0.75, decode_s=3.0)


def test_the_time_from_the_last_unit_to_the_loss_is_lost() -> None:
    """What it had made until then was not: the next node went on from there."""
    lost = attempt(first_s=1.5, last_s=3.0, ended_s=4.0, units=9, why="node a was lost", prefill_s=0.5)
    again = attempt(node="b", dispatched_s=4.5, from_unit=9, units=3, first_s=5.0, ended_s=6.0, prefill_s=0.5)

    assert spent(6.0, [lost, again]) == Spent(queue_s=1.5, prefill_s=1.0, decode_s=2.5, lost_s=1.0)


def test_a_try_without_a_unit_is_all_lost_or_still_on_its_way() -> None:
    """As it has ended or not."""
    assert spent(3.0, [attempt(ended_s=3.0, why="it broke")]) == Spent(queue_s=1.0, lost_s=2.0)
    assert spent(3.0, [attempt()]) == Spent(queue_s=1.0, dispatch_s=2.0)


def test_a_node_whose_clock_runs_fast_does_not_make_time() -> None:
    """It cannot have computed for longer than the broker waited."""
    assert spent(2.0, [attempt(first_s=1.5, ended_s=2.0, prefill_s=9.0)]).prefill_s == 0.5
