"""Who gets the next request, and which request is next."""

from __future__ import annotations

import sys
from collections import Counter

from support.stage import UNARY, Stage, ask, offer, rid_of
from zmqrt.protocol import messages as m


def test_at_saturation_in_flight_follows_capacity() -> None:
    """Two nodes, one twice as large: 2 to 1."""
    stage = Stage(outstanding=1000)
    client = stage.client()
    large, small = stage.worker(capacity=20, credit=1000), stage.worker(capacity=10, credit=1000)

    client.send(*(ask(n) for n in range(24)))

    assert (len(large.work()), len(small.work())) == (16, 8)


def test_a_node_gets_no_more_than_its_credit() -> None:
    """The rest waits; credit is cumulative, and each answer brings new."""
    _, client, worker = Stage().with_peers(capacity=10, credit=2)

    client.send(*(ask(n) for n in range(5)))
    first = worker.work()
    worker.beat(limit=2)
    again = worker.work()
    worker.send(m.Credit(worker.epoch, 3))

    assert [len(first), len(again), len(worker.work())] == [2, 0, 1]


def test_credit_never_falls_and_never_exceeds_the_capacity() -> None:
    """A lower limit is ignored, an absurd one is cut to what the node said it holds."""
    _, client, worker = Stage().with_peers(capacity=3, credit=1)
    worker.send(m.Credit(worker.epoch, 0), m.Credit(worker.epoch, 2**63 - 1))

    client.send(*(ask(n) for n in range(9)))

    assert len(worker.work()) == 3


def test_credit_of_another_epoch_counts_for_nothing() -> None:
    """Stale messages cannot open a node."""
    _, client, worker = Stage().with_peers(credit=0)

    worker.send(m.Credit(worker.epoch + 1, 100), m.Heartbeat(worker.epoch + 1, 1, 0, 100, "ready"))
    client.request(1)

    assert worker.work() == []


def test_a_node_that_loads_gets_nothing_whatever_its_credit() -> None:
    """Work begins with the heartbeat that says ready."""
    _, client, worker = Stage().with_peers(credit=0)
    worker.beat(limit=4, phase="loading", percent=50)

    client.request(1)
    assert worker.work() == []
    worker.beat(phase="ready")

    assert len(worker.work()) == 1


def test_a_service_of_a_node_has_its_own_bound() -> None:
    """max_inflight of one service does not stop another on the same node."""
    stage = Stage()
    client = stage.client()
    worker = stage.worker(capacity=10, services=[offer("a", max_inflight=2), offer("b")])

    client.send(*(ask(n, service="a") for n in range(4)), *(ask(n, service="b") for n in range(4, 8)))

    assert Counter(d.service for d in worker.work()) == {"a": 2, "b": 4}


def test_among_equals_the_node_with_free_kv_memory_comes_first() -> None:
    """The tie-break is what the devices report."""
    stage = Stage()
    client, full, free = stage.client(), stage.worker(), stage.worker()
    full.beat(devices=[m.DeviceLoad("d", "ready", kv_percent=90)])
    free.beat(devices=[m.DeviceLoad("d", "ready", kv_percent=10)])

    client.request(1)

    assert (len(full.work()), len(free.work())) == (0, 1)


def test_among_equals_they_take_turns() -> None:
    """Nobody is always first."""
    stage = Stage(outstanding=100)
    client, nodes = stage.client(), [stage.worker() for _ in range(3)]
    served: list[str] = []

    for n in range(6):
        client.request(n)
        for node in nodes:
            for job in node.work():
                served.append(node.name)
                node.final(job.lease)

    assert served[:3] == served[3:]
    assert len(set(served[:3])) == 3


def test_capacity_is_what_the_engines_hold_when_they_say_so() -> None:
    """A node of 100 whose only engine that is up holds 4 counts as a node of 4."""
    stage = Stage(outstanding=100)
    client, small, large = stage.client(), stage.worker(capacity=100), stage.worker(capacity=12)
    small.beat(devices=[m.DeviceLoad("d", "ready", capacity=4), m.DeviceLoad("e", "loading")])

    client.send(*(ask(n) for n in range(8)))

    assert (len(small.work()), len(large.work())) == (2, 6)


def test_a_higher_priority_goes_first() -> None:
    """Whatever the order they came in."""
    _, client, worker = Stage().with_peers(credit=0)
    client.send(ask(1, prio=0), ask(2, prio=-5), ask(3, prio=5), ask(4, prio=0))

    worker.beat(limit=4)

    assert [d.rid for d in worker.work()] == [rid_of(3), rid_of(1), rid_of(4), rid_of(2)]


def test_clients_take_turns_in_the_queue() -> None:
    """One that sends many does not starve one that sends a single request."""
    stage = Stage()
    greedy, modest, worker = stage.client(), stage.client(), stage.worker(credit=0)
    greedy.send(*(ask(n) for n in range(1, 6)))
    modest.request(9)

    worker.beat(limit=3)

    assert [d.rid for d in worker.work()] == [rid_of(1), rid_of(9), rid_of(2)]


def test_a_cancelled_request_gives_its_place_up() -> None:
    """What was cancelled in the queue never reaches a node."""
    _, client, worker = Stage().with_peers(credit=0)
    client.send(ask(1), ask(2))

    client.send(m.Cancel(rid_of(1)))
    worker.beat(limit=4)

    assert [d.rid for d in worker.work()] == [rid_of(2)]


def test_many_cancelled_requests_do_not_pile_up() -> None:
    """Their entries are swept up while nothing is dispatched."""
    stage = Stage(in_flight=1000)
    client, _ = stage.client(), stage.worker(credit=0)

    for n in range(2000):
        client.send(ask(n), m.Cancel(rid_of(n)))

    assert stage.broker.state.services["toy"].queue.entries < 200


def test_the_body_of_a_cancelled_request_is_let_go_at_once() -> None:
    """Its entry stays in the queue for a while, and counts nowhere."""
    stage = Stage(in_flight=1000)
    client, _ = stage.client(), stage.worker(credit=0)
    body = bytes(100_000)
    before = sys.getrefcount(body)

    for n in range(8):
        client.send(ask(n, body=body), m.Cancel(rid_of(n)))

    assert stage.broker.state.services["toy"].queue.entries == 8
    assert sys.getrefcount(body) == before


def test_a_node_without_a_slot_is_left_alone_until_it_tells_a_higher_limit() -> None:
    """429 from a node: the request goes back to the front, and no attempt is counted."""
    stage, client, worker = Stage(attempts=2).with_peers(capacity=2, credit=1)
    client.request(1)

    for limit in range(2, 9):
        (job,) = worker.work()
        worker.error(job.lease, 429, "no_slot")
        worker.beat(limit=limit - 1)
        assert worker.work() == []
        worker.beat(limit=limit)

    assert [job.attempt for job in worker.work()] == [1]
    assert client.hear_only(m.Error) == []
    assert (stage.counters.refused_by_node, stage.counters.redispatches) == (7, 0)


def test_what_a_node_refuses_another_takes_at_once() -> None:
    """The free one is not waited for."""
    stage = Stage()
    client, first, second = stage.client(), stage.worker(capacity=1), stage.worker(capacity=1)
    client.request(1)
    (taker, other) = (first, second) if (jobs := first.work()) else (second, first)
    (job,) = jobs or taker.work()

    taker.error(job.lease, 429, "no_slot")

    assert [d.rid for d in other.work()] == [rid_of(1)]


def test_a_dispatch_that_never_left_goes_elsewhere_without_counting() -> None:
    """Even one that must not run twice: it has not run at all."""
    from zmqrt.broker.core import SendFailure

    stage = Stage()
    client, first = stage.client(), stage.worker()
    client.request(1, flags=0)
    jobs = first.work()
    second = stage.worker()

    stage.send_failed(first, jobs, SendFailure.UNREACHABLE)

    assert [(d.rid, d.attempt) for d in second.work()] == [(rid_of(1), 1)]


def test_offers_may_change_while_the_node_runs() -> None:
    """A heartbeat with services replaces the list; what runs goes on."""
    _, client, worker = Stage().with_peers(services=[offer("a")])
    client.request(1, service="a")
    (job,) = worker.work()

    worker.beat(services=[offer("b")])
    client.request(2, service="b")
    worker.final(job.lease, credit=2)

    assert [d.service for d in worker.work()] == ["b"]
    assert [f.rid for f in client.hear_only(m.Final)] == [rid_of(1)]


def test_flags_and_time_left_travel_with_the_request() -> None:
    """A node is told how long it has."""
    stage, client, worker = Stage().with_peers(credit=0)
    client.request(1, flags=UNARY, ttl_s=10.0)
    stage.pass_time(4.0)

    worker.beat(limit=1)

    (job,) = worker.work()
    assert (job.flags, job.ttl_ms) == (UNARY, 6000)


def test_what_a_client_says_about_a_request_goes_along_to_the_node() -> None:
    """Trace context and name, untouched; and with each further attempt."""
    stage = Stage()
    client, workers = stage.client(), [stage.worker("a"), stage.worker("b")]
    told = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "request_id": "job-7"}
    client.send(ask(1, ext=told))
    ((first, given),) = [(worker, one) for worker in workers for one in worker.work()]

    assert given.ext == told
    stage.gone(first)
    stage.pass_time(2.0)
    (again,) = [one for worker in workers if worker is not first for one in worker.work()]
    assert again.ext == told


def test_a_request_behind_a_drain_in_one_envelope_does_not_go_to_that_node() -> None:
    """What changed a moment ago is indexed anew before a node is chosen, not only at the end of the envelope."""
    stage = Stage()
    leaving, staying = stage.worker("leaving"), stage.worker("staying")
    client = stage.client()

    client.send(m.Admin(1, "drain", {"node": "leaving"}), *(ask(number) for number in range(4)))

    assert leaving.work() == []
    assert len(staying.work()) == 4
