"""Rates, quantiles and curves from snapshots as they come; and several brokers put together."""

from __future__ import annotations

import msgspec
import pytest

from support.snapshots import event, node, request, service, snapshot
from support.top import fleet_of
from zmqrt.client.top.fleet import BrokerView, merge
from zmqrt.client.top.history import WINDOW_S, FleetHistory, Latency
from zmqrt.protocol.histogram import Histogram
from zmqrt.protocol.snapshot import Snapshot


def view(one: Snapshot | None, endpoint: str = "tcp://x:1") -> BrokerView:
    """See a broker."""
    return BrokerView(endpoint=endpoint, snapshot=one, problem="" if one else "gone")


def at(uptime_s: float, completed: int, tokens: int = 0, epoch: int = 1) -> Snapshot:
    """Describe a broker at a time, with one node that beats each time."""
    return msgspec.structs.replace(
        snapshot(node("a", elapsed_s=uptime_s, tokens=tokens)),
        uptime_s=uptime_s,
        broker_epoch=epoch,
        counters={"completed": completed, "failed": 0},
    )


def test_rates_are_those_between_two_looks() -> None:
    """Unknown at the first; by the broker's own clock, however late the look."""
    history = FleetHistory()
    history.fold([view(at(10.0, 100, 1000))], 0.0)
    first = history.points[-1]
    history.fold([view(at(12.0, 150, 1500))], 5.0)
    second = history.points[-1]

    assert (first.answered_per_s, first.tokens_per_s) == (None, None)
    assert (second.answered_per_s, second.tokens_per_s) == (25.0, 250.0)
    assert history.curve(lambda point: point.answered_per_s) == [0.0, 25.0]


def test_a_broker_that_began_anew_counts_from_nothing() -> None:
    """No rate below zero, and none that was not seen."""
    history = FleetHistory()
    history.fold([view(at(10.0, 100))], 0.0)
    history.fold([view(at(1.0, 5, epoch=2))], 1.0)
    unknown = history.points[-1]
    history.fold([view(at(2.0, 8, epoch=2))], 2.0)

    assert unknown.answered_per_s is None
    assert history.points[-1].answered_per_s == 3.0


def test_rates_of_brokers_add_up_and_one_that_is_gone_is_left_out() -> None:
    """Each by its own clock."""
    history = FleetHistory()
    history.fold([view(at(10.0, 0)), view(at(50.0, 0, epoch=2), "tcp://y:1")], 0.0)
    history.fold([view(at(11.0, 4)), view(at(52.0, 4, epoch=2), "tcp://y:1")], 1.0)
    assert history.points[-1].answered_per_s == 6.0
    history.fold([view(at(12.0, 8)), view(None, "tcp://y:1")], 2.0)
    assert history.points[-1].answered_per_s == 4.0


def test_quantiles_are_of_the_last_minute() -> None:
    """What took long before then does not count any more."""

    def broker(*lengths_s: float) -> Snapshot:
        took = Histogram()
        for one in lengths_s:
            took.add(one)
        return snapshot(services=[service("m", first_token=took)])

    history = FleetHistory()
    history.fold([view(broker(9.0))], 0.0)
    began = history.first_token
    history.fold([view(broker(9.0))], WINDOW_S)
    history.fold([view(broker(9.0, 0.01))], WINDOW_S + 1.0)

    assert began.median_s == pytest.approx(9.0, rel=0.3)
    assert history.first_token.median_s == pytest.approx(0.01, rel=0.3)
    assert history.duration == Latency(None, None)


def test_a_node_of_two_brokers_is_one_node() -> None:
    """The liveliest account counts; requests add up, and slots do not."""
    one, other = snapshot(node("a")), snapshot(node("a", health="lost"))
    fleet = fleet_of(one, other)

    assert [(each.node_id, each.health, each.in_flight) for each in fleet.nodes] == [("a", "active", 4)]
    assert fleet.capacity == 8
    assert fleet.nodes[0].completed == 6


def test_models_requests_events_and_counters_are_put_together() -> None:
    """The oldest request first, the newest event first, counters added."""
    one = snapshot(
        services=[service("m", queued=1)], requests=[request("old", age_s=9.0)], events=[event(1)], uptime_s=10.0
    )
    other = snapshot(
        services=[service("m", queued=2), service("k")],
        requests=[request("new")],
        events=[event(5)],
        uptime_s=6.0,
        counters={"completed": 3},
    )
    fleet = fleet_of(one, other)

    assert [(each.service, each.queued) for each in fleet.services] == [("k", 0), ("m", 3)]
    assert [each.request.request_id for each in fleet.requests] == ["old", "new"]
    assert [(each.event.id, each.ago_s) for each in fleet.events] == [(5, 1.0), (1, 9.0)]
    assert fleet.counters["completed"] == 3
    assert merge([]).nodes == []


def test_a_broker_that_comes_late_does_not_bring_its_past_along() -> None:
    """Nor one that was away for a moment: the last minute is what was seen of it."""

    def broker(epoch: int, *lengths_s: float) -> Snapshot:
        took = Histogram()
        for one in lengths_s:
            took.add(one)
        return msgspec.structs.replace(snapshot(services=[service("m", duration=took)]), broker_epoch=epoch)

    history = FleetHistory()
    history.fold([view(broker(1, 0.01))], 0.0)
    history.fold([view(broker(1, 0.01, 0.01)), view(broker(2, 50.0), "tcp://y:1")], 1.0)
    history.fold([view(broker(1, 0.01, 0.01)), view(None, "tcp://y:1")], 2.0)
    history.fold([view(broker(1, 0.01, 0.01)), view(broker(2, 50.0), "tcp://y:1")], 70.0)
    history.fold([view(broker(1, *[0.01] * 9)), view(broker(2, 50.0), "tcp://y:1")], 71.0)

    assert history.duration.median_s == pytest.approx(0.01, rel=0.3)
    assert history.duration.p99_s == pytest.approx(0.01, rel=0.3)


def test_the_same_look_twice_is_one() -> None:
    """A picture that is drawn a little faster than brokers are asked does not blink."""
    history, one = FleetHistory(), at(10.0, 0)
    history.fold([view(one)], 0.0)
    two = at(11.0, 5)
    for now in (1.0, 1.9, 2.0):
        history.fold([view(two)], now)

    assert len(history.points) == 2
    assert history.points[-1].answered_per_s == 5.0


def test_one_broker_by_two_names_counts_once() -> None:
    """`localhost` and its address, for example."""
    one = snapshot(node("a"), running=4)
    fleet = merge([view(one), view(one, "tcp://localhost:1")])

    assert fleet.running == 4
    assert len(fleet.views) == 1


def test_models_of_brokers_with_different_nodes_add_up() -> None:
    """Nodes, slots and what they counted: none of it depends on which broker is named first."""
    quick, slow = Histogram(), Histogram()
    quick.add(0.01)
    slow.add(1.0)
    one = snapshot(node("a"), services=[service("m", duration=quick)])
    other = snapshot(node("b"), services=[service("m", duration=slow)])
    for fleet in (fleet_of(one, other), fleet_of(other, one)):
        (model,) = fleet.services
        assert (model.nodes, model.capacity, model.running, model.duration.count) == (2, 16, 4, 2)
