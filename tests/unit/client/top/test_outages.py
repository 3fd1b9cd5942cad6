"""What happens to brokers, as the monitor sees it from one look to the next."""

from __future__ import annotations

import io

from rich.console import Console

from support.snapshots import snapshot
from zmqrt.client.top.fleet import BrokerView, merge
from zmqrt.client.top.history import FleetHistory
from zmqrt.client.top.outages import Outages
from zmqrt.client.top.view import once

A, B = "tcp://a:1", "tcp://b:1"


def up(endpoint: str = A, *, epoch: int = 1, draining: bool = False) -> BrokerView:
    """See a broker that answers."""
    return BrokerView(
        endpoint=endpoint, snapshot=snapshot(broker_id=endpoint[6], broker_epoch=epoch, draining=draining)
    )


def down(endpoint: str = A, problem: str = "nobody listens there") -> BrokerView:
    """See none."""
    return BrokerView(endpoint=endpoint, problem=problem)


def seen(*views: BrokerView) -> Outages:
    """Look once a second."""
    outages = Outages()
    for second, view in enumerate(views):
        outages.fold([view], float(second))
    return outages


def told(outages: Outages) -> list[tuple[str, str, str]]:
    """Return what there is to tell, the oldest first."""
    return [(one.event.kind, one.event.subject, one.event.text) for one in reversed(outages.events())]


def test_a_broker_that_is_lost_and_comes_back_is_told_once_each() -> None:
    """However long it is away; the cause is the one that is known best, and the age grows."""
    outages = seen(up(), down(problem="it hung up"), down(), down(), up(epoch=2), up(epoch=2))

    assert told(outages) == [
        ("lost", "broker a", "nobody listens there"),
        ("returned", "broker a", "after 3 s, started anew"),
    ]
    assert [one.ago_s for one in outages.events()] == [1.0, 4.0]
    assert [one.event.level for one in outages.events()] == ["info", "error"]


def test_the_same_broker_behind_a_broken_connection_was_not_started_anew() -> None:
    """Its epoch says so."""
    outages = seen(up(), down(), up())

    assert told(outages)[-1] == ("returned", "broker a", "after 1 s")


def test_a_start_between_two_looks_is_seen_all_the_same() -> None:
    """Another epoch, and no look without an answer."""
    outages = seen(up(), up(epoch=2))

    assert told(outages) == [("returned", "broker a", "it was started anew between two looks")]


def test_a_broker_that_says_that_it_leaves_is_told_before_it_is_gone() -> None:
    """Once, and its end after it."""
    outages = seen(up(), up(draining=True), up(draining=True), down(), up(epoch=2))

    assert [kind for kind, _, _ in told(outages)] == ["draining", "lost", "returned"]


def test_a_broker_that_has_said_goodbye_is_no_loss_yet() -> None:
    """It answers no more questions while it finishes what it has; a loss is what follows."""
    leaving = BrokerView(endpoint=A, problem="it is shutting down", is_leaving=True)
    outages = seen(up(), leaving, leaving, down())

    assert told(outages) == [
        ("draining", "broker a", "it is shutting down"),
        ("lost", "broker a", "nobody listens there"),
    ]


def test_each_of_several_brokers_is_told_by_its_name() -> None:
    """And one that was never there by its address."""
    outages = Outages()
    outages.fold([up(A), down(B, "")], 0.0)
    outages.fold([down(A), down(B)], 1.0)

    assert [subject for _, subject, _ in told(outages)] == ["broker a", f"broker {B}"]


def test_a_clock_that_is_set_back_begins_anew() -> None:
    """The clock of a machine may be set back."""
    outages = Outages()
    outages.fold([up()], 5.0)
    outages.fold([down()], 6.0)
    outages.fold([up()], 1.0)

    assert told(outages) == []


def test_a_broker_that_comes_and_goes_all_day_is_bounded() -> None:
    """The newest are told."""
    outages = seen(*[down(), up()] * 5_000)

    assert len(outages.events()) == 64


def test_the_events_stand_among_those_of_the_brokers() -> None:
    """Though no broker that is there tells any."""
    history = FleetHistory()
    for second, view in enumerate([up(), down(problem="the connection is gone\nand more")]):
        history.fold([view, up(B, epoch=9)], float(second))
    console = Console(width=100, file=io.StringIO())

    console.print(once(merge([down(), up(B, epoch=9)], history.outages.events()), history, 100))

    assert isinstance(console.file, io.StringIO)
    assert "lost broker a: the connection is gone" in console.file.getvalue()
