"""What comes before a request in its queue, against the queue itself."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.stage import Client, Stage, Worker
from zmqrt.broker.requests import Request
from zmqrt.protocol import messages as m

asks = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([10, 10, 100])), min_size=1, max_size=30)


def busy() -> tuple[Stage, Client, Worker]:
    """Give a broker with one node that runs one request at a time, and has one."""
    stage = Stage(in_flight=4096, outstanding=4096, priority=100)
    worker = stage.worker(capacity=1, credit=100_000)
    client = stage.client()
    client.request(9_999_999)
    return stage, client, worker


def waiting(stage: Stage) -> list[Request]:
    """List what waits."""
    (service,) = stage.broker.state.services.values()
    return service.queue.waiting()


def before(stage: Stage, request: Request) -> int:
    """Return how many are thought to come before a request."""
    return round(request.service.queue.before(request).now.requests)


def order(worker: Worker) -> list[bytes]:
    """Serve all that waits; return in which order."""
    served: list[bytes] = []
    while running := list(worker.stage.broker.state.nodes[worker.peer].running):
        worker.final(running[0])
        served += [job.rid for job in worker.work()]
    return served


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_where_a_request_stands_is_when_it_is_served(tenants: list[str]) -> None:
    """Of equal requests exactly, but for whose turn among equals it is."""
    stage, client, worker = busy()
    for number, tenant in enumerate(tenants):
        client.request(number, ext={"party": tenant})
    told = {request.ask.rid: before(stage, request) for request in waiting(stage)}
    worker.work()

    for place, rid in enumerate(order(worker)):
        assert abs(told[rid] - place) <= 2


@settings(max_examples=30, deadline=None)
@given(asks, st.lists(st.integers(0, 29), max_size=10))
def test_sums_are_right_whatever_comes_and_goes(wishes: list[tuple[str, int]], cancelled: list[int]) -> None:
    """What has ended counts no more, and an empty queue has nothing in it."""
    stage, client, worker = busy()
    for number, (tenant, cost) in enumerate(wishes):
        client.request(number, cost=cost, prio=cost % 3, ext={"party": tenant})
    for number in cancelled:
        client.send(m.Cancel(number.to_bytes(16, "big")))

    (service,) = stage.broker.state.services.values()
    left = waiting(stage)
    assert service.queue.backlog.work.requests == len(left)
    assert service.queue.backlog.work.made == sum(request.ask.cost for request in left)
    worker.work()
    order(worker)
    assert service.queue.backlog.work == (0, 0, 0)


def test_higher_priorities_come_before_but_not_for_ever() -> None:
    """Of a hundred higher ones a lower one waits for sixteen, and a higher one for none of the lower."""
    stage, client, _ = busy()
    for number in range(100):
        client.request(number, prio=1)
    client.request(200, prio=0)
    client.request(300, prio=2)

    told = {int.from_bytes(request.ask.rid, "big"): before(stage, request) for request in waiting(stage)}
    assert told[200] == 16
    assert told[300] == 0


@pytest.mark.parametrize("many", [10, 500])
def test_a_newcomer_is_told_of_its_own_turn(many: int) -> None:
    """However much another tenant has waiting."""
    stage, client, _ = busy()
    for number in range(many):
        client.request(number, ext={"party": "hot"})

    (service,) = stage.broker.state.services.values()
    assert service.queue.before_new(0, "calm", "calm").now.requests <= 1
    assert service.queue.before_new(0, "hot", "hot").now.requests == many


def test_with_many_tenants_some_stand_for_all() -> None:
    """Whoever is last of three hundred is told so, though only some of them are looked at."""
    stage, client, _ = busy()
    for number in range(300):
        client.request(number, ext={"party": f"t{number}"})

    ahead = [before(stage, request) for request in itertools.islice(waiting(stage), 5)]
    assert all(count >= 290 for count in ahead)
