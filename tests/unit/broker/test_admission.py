"""What may come in, and what those hear who may not."""

from __future__ import annotations

import hashlib

import pytest

from support.growth import held
from support.stage import SERVICE, STREAM, Client, Stage, Worker, ask, offer, rid_of
from zmqrt.protocol import messages as m
from zmqrt.protocol.limits import MAX_INT


def refusal_of(client: Client) -> m.Error:
    """Return the one error that a client was told."""
    (error,) = client.hear_only(m.Error)
    return error


def test_an_unknown_model_is_404_and_the_known_ones_are_listed() -> None:
    """The sentence helps whoever misspelt it."""
    stage = Stage()
    client, _ = stage.client(), stage.worker(services=[offer("mock"), offer("smollm2")])
    stage.pass_time(2.0)

    client.request(1, service="smolm2")

    error = refusal_of(client)
    assert (error.code, error.reason, error.retryable) == (404, "model_not_found", False)
    assert "known: mock, smollm2" in error.text


def test_a_new_broker_waits_a_moment_before_it_calls_a_model_unknown() -> None:
    """After a restart nodes come back within a second; a request sent again must not be lost to that."""
    stage = Stage()
    client, _ = stage.client(), stage.worker()

    client.request(1, service="other")
    other = stage.worker(services=[offer("other")])

    assert [d.rid for d in other.work()] == [rid_of(1)]


def test_a_new_broker_without_any_node_waits_for_the_first() -> None:
    """Up to the eviction time; then it says what to start."""
    stage = Stage()
    client = stage.client()

    client.request(1)
    stage.pass_time(9.8)
    assert client.hear_only(m.Error) == []
    stage.pass_time(0.4)

    error = refusal_of(client)
    assert (error.code, error.reason, error.retryable) == (503, "no_worker", True)
    assert "zmqrt-worker" in error.text


def test_without_a_healthy_node_it_is_503_at_once() -> None:
    """Once the broker has been there for a while, waiting would be pointless."""
    stage = Stage()
    client = stage.client()
    stage.pass_time(11.0)

    client.request(1)

    assert refusal_of(client).code == 503


def test_a_model_that_is_still_loading_says_how_far_it_is() -> None:
    """503 with an estimate from its progress: 30 % in 3 s leaves 7 s."""
    stage, client, worker = Stage().with_peers()
    worker.beat(phase="loading", percent=30, elapsed_ms=3000)
    stage.pass_time(11.0)
    worker.come_back(b"w-new")
    worker.beat(phase="loading", percent=30, elapsed_ms=3000)

    client.request(1)

    error = refusal_of(client)
    assert (error.code, error.reason, error.retry_after_ms) == (503, "starting", 7000)
    assert "loading, 30 %" in error.text


def test_a_node_that_has_just_registered_is_given_a_moment_to_say_how_it_is() -> None:
    """Its first heartbeat follows READY at once; a request between the two waits."""
    stage = Stage()
    client = stage.client()
    stage.pass_time(11.0)
    worker = Worker(stage, "w", "", 4)
    worker.register()

    client.request(1)
    client.request(2)
    stage.pass_time(0.5)
    assert client.hear_only(m.Error) == []
    worker.beat(limit=1)
    assert [d.rid for d in worker.work()] == [rid_of(1)]
    silent = Worker(stage, "s", "", 4)
    silent.register(services=[offer("other")])
    client.request(3, service="other")
    stage.pass_time(1.1)

    assert [(e.rid, e.code) for e in client.hear_only(m.Error)] == [(rid_of(3), 503)]


def test_a_service_whose_node_was_just_there_is_waited_for() -> None:
    """Within the eviction time the request waits, and goes to the node that comes."""
    stage, client, worker = Stage().with_peers()
    worker.send(m.Leave(worker.epoch))

    client.request(1)
    assert client.hear_only(m.Error) == []
    other = stage.worker()

    assert len(other.work()) == 1


def test_what_waits_for_a_service_that_stays_away_is_told_so() -> None:
    """The grace ends one eviction time after the last node went."""
    stage, client, worker = Stage().with_peers()
    worker.send(m.Leave(worker.epoch))
    client.request(1)

    stage.pass_time(10.1)

    assert (refusal_of(client).code, stage.broker.state.labelled.failures["no_worker"]) == (503, 1)


@pytest.mark.parametrize(("nodes", "bound"), [(1, 3), (2, 6)])
def test_the_queue_grows_with_the_nodes(nodes: int, bound: int) -> None:
    """So many per active node; the next is told when to come back."""
    stage = Stage(in_flight=3, outstanding=100)
    client = stage.client()
    for _ in range(nodes):
        stage.worker(credit=0)

    client.send(*(ask(n) for n in range(bound + 1)))

    error = refusal_of(client)
    assert (error.rid, error.code, error.reason) == (rid_of(bound), 429, "queue_full")
    assert stage.broker.snapshot(stage.now).queued == bound


def test_the_queue_is_bounded_in_bytes() -> None:
    """A few large bodies fill it as well; those who have few waiting find room to twice the bound."""
    stage = Stage(queue_bytes=1000)
    client, _ = stage.client(), stage.worker(credit=0)

    client.send(*(ask(number, body=b"x" * 600) for number in range(1, 5)))

    assert refusal_of(client).rid == rid_of(4)


def test_retry_after_follows_the_queue_and_the_speed_of_the_service() -> None:
    """Two run at a time and take one second each: four that wait, and the one refused, need 2.5 s."""
    stage, client, worker = Stage(in_flight=4).with_peers(capacity=2)
    client.send(ask(1), ask(2))
    jobs = worker.work()
    stage.pass_time(1.0)
    for job in jobs:
        worker.final(job.lease)

    client.send(*(ask(n) for n in range(10, 17)))

    assert [e.retry_after_ms for e in client.hear_only(m.Error)] == [2500]


def test_retry_after_counts_what_the_nodes_can_do_and_not_what_they_do_yet() -> None:
    """A broker that takes over finds its nodes busy for another one: it runs nothing, and that will not stay so."""
    stage, client, worker = Stage(in_flight=4).with_peers(capacity=2)
    client.send(ask(1), ask(2))
    jobs = worker.work()
    stage.pass_time(1.0)
    for job in jobs:
        worker.final(job.lease, credit=0)

    client.send(*(ask(n) for n in range(10, 15)))

    assert [e.retry_after_ms for e in client.hear_only(m.Error)] == [2500]


def test_one_connection_may_have_so_many_unanswered() -> None:
    """The bound is per connection, and a slot opens with each answer."""
    _, client, worker = Stage(outstanding=2).with_peers()
    client.send(ask(1), ask(2), ask(3))
    assert refusal_of(client).reason == "rate_limited"

    worker.final(worker.work()[0].lease)
    client.hear()
    client.request(3)

    assert client.hear_only(m.Error) == []


def test_memory_is_bounded_and_outcomes_make_room_first() -> None:
    """Old outcomes go before new work is refused."""
    _, client, worker = Stage(held_bytes=30_000).with_peers(capacity=100)
    client.request(1)
    worker.final(worker.work()[0].lease, body=b"x" * 15_000)
    client.hear()

    client.request(2, body=b"y" * 20_000)
    assert client.hear_only(m.Error) == []
    client.request(3, body=b"z" * 20_000)

    error = refusal_of(client)
    assert (error.rid, error.reason, error.retryable) == (rid_of(3), "memory_full", True)


def test_a_resumable_request_gets_the_seed_that_every_broker_would_give() -> None:
    """SHA-256 of the request id, unless the body names one."""
    _, client, worker = Stage().with_peers()

    client.send(ask(1, flags=STREAM), ask(2, flags=STREAM | m.SEEDED), ask(3), ask(4, flags=STREAM, ext={"a": 1}))

    seeds = [dispatch.ext for dispatch in worker.work()]
    first, fourth = (int.from_bytes(hashlib.sha256(rid_of(n)).digest()[:8], "big") & MAX_INT for n in (1, 4))
    assert seeds == [{"seed": first}, {}, {}, {"a": 1, "seed": fourth}]


def test_ext_without_room_for_the_seed_is_refused() -> None:
    """A node could not read seventeen keys."""
    stage = Stage()
    client, _ = stage.client(), stage.worker()

    client.request(1, flags=STREAM, ext={f"k{n}": n for n in range(16)})

    assert refusal_of(client).code == 400


def test_a_refused_request_may_be_sent_again() -> None:
    """A refusal is not an outcome."""
    stage = Stage()
    client = stage.client()
    stage.pass_time(11.0)
    client.request(1)
    assert refusal_of(client).code == 503

    worker = stage.worker()
    client.request(1)

    assert len(worker.work()) == 1


def test_a_draining_broker_takes_nothing_new() -> None:
    """It says goodbye to everybody, refuses what comes, and finishes what it has."""
    stage, client, worker, job = Stage().running()

    stage.broker.drain(stage.now)
    stage.collect()
    client.request(2)

    goaway, error = client.hear()
    assert isinstance(goaway, m.Goaway)
    assert (error.rid, error.reason, error.retryable) == (rid_of(2), "draining", True)
    assert not stage.broker.is_drained
    worker.final(job.lease)
    assert len(client.hear_only(m.Final)) == 1
    assert stage.broker.is_drained


def test_who_comes_while_the_broker_drains_is_sent_away_at_once() -> None:
    """With the time that is left; it may still attach to what runs here."""
    stage = Stage()
    client, worker = stage.client(client_uuid=b"u" * 16), stage.worker()
    client.request(1, ttl_s=60.0)
    (job,) = worker.work()
    stage.broker.drain(stage.now)
    stage.pass_time(1.0)
    late = stage.client(greets=False)

    late.send(m.Hello(b"u" * 16, 1, 1), ask(1, ttl_s=60.0))
    worker.final(job.lease)

    welcome, goaway, final = late.hear()
    assert isinstance(welcome, m.Welcome)
    assert (type(goaway), goaway.deadline_ms) == (m.Goaway, 29_000)
    assert final.rid == rid_of(1)


def test_what_a_draining_broker_cannot_finish_goes_on_elsewhere() -> None:
    """At the deadline its requests end with 503 and the unit to go on from."""
    stage, client, worker, job = Stage().running(flags=STREAM, ttl_s=300.0)
    worker.partial(job.lease, 0, 3)
    client.hear()

    stage.broker.drain(stage.now)
    stage.stay_alive(31, worker, client)

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.retryable, error.resume_n) == (503, True, 3)
    assert stage.broker.is_drained


def test_two_users_with_the_same_request_id_never_meet() -> None:
    """A request id is looked up under its user."""
    stage = Stage()
    alice, bob = stage.client("a", user="alice"), stage.client("b", user="bob")
    worker = stage.worker()

    alice.request(1, body=b"mine")
    bob.request(1, body=b"other")

    jobs = worker.work()
    assert [(job.user, job.body) for job in jobs] == [("alice", b"mine"), ("bob", b"other")]
    worker.final(jobs[1].lease, body=b"for bob")
    assert [f.body for f in bob.hear_only(m.Final)] == [b"for bob"]
    assert alice.hear_only(m.Final) == []


def test_the_service_name_travels_with_the_request() -> None:
    """A node that offers several knows which one is meant."""
    _, client, worker = Stage().with_peers(services=[offer("a"), offer("b")])

    client.send(ask(1, service="b"), ask(2, service="a"))

    assert [d.service for d in worker.work()] == ["b", "a"]
    assert SERVICE not in ("a", "b")


def test_bodies_of_what_was_cancelled_in_the_queue_do_not_stay() -> None:
    """They count nowhere any more: what is left of them is bounded, however large each is."""
    stage = Stage()
    client = stage.client()
    stage.worker(capacity=1, credit=0)
    for number in range(50):
        client.request(number, body=bytes(1 << 20))
        client.send(m.Cancel(rid_of(number), "enough"))

    assert held(stage.broker) * 100 < 6 << 20


def slow_service(*, waiting: int = 0) -> tuple[Stage, Client, Worker]:
    """Give a broker that knows that answers take two seconds, and a node with one place, which is taken."""
    stage = Stage()
    client = stage.client()
    worker = stage.worker(capacity=1, credit=1000)
    for number in range(1000, 1020):
        client.request(number)
        (job,) = worker.work()
        stage.stay_alive(2, client, worker)
        worker.final(job.lease)
    for number in range(2000, 2001 + waiting):
        client.request(number)
    client.hear()
    return stage, client, worker


def test_what_cannot_be_done_in_its_time_is_refused_at_once() -> None:
    """With when to come back, and the numbers it follows from; what can be is taken."""
    stage, client, _ = slow_service(waiting=4)

    client.request(1, ttl_s=5.0)
    client.request(2, ttl_s=60.0)

    error = refusal_of(client)
    assert (error.rid, error.code, error.reason, error.retryable) == (rid_of(1), 429, "queue_full", True)
    assert 8_000 <= error.retry_after_ms <= 11_000
    assert "4 requests come before this one" in error.text
    assert "take 2.00 s" in error.text
    assert stage.counters.rejected_too_late == 1


def test_whoever_has_patience_waits_while_the_queue_moves() -> None:
    """Its time is time without progress; a bound of its whole time counts."""
    _, client, _ = slow_service(waiting=4)

    client.request(1, ttl_s=5.0, flags=STREAM)
    client.request(2, ttl_s=5.0, ext={"progress": True})
    assert client.hear_only(m.Error) == []
    client.request(3, ttl_s=5.0, flags=STREAM, ext={"total_ms": 5000})

    assert refusal_of(client).rid == rid_of(3)


def test_while_a_node_is_free_nobody_is_asked_how_long_it_takes() -> None:
    """One that may take longer than its time has it, all the same."""
    _, client, worker = slow_service()
    (job,) = worker.work()
    worker.final(job.lease)

    client.request(1, ttl_s=0.5)

    assert [job.rid for job in worker.work()] == [rid_of(1)]


def test_a_fleet_that_has_answered_nothing_yet_takes_all() -> None:
    """There is nothing to judge by."""
    stage = Stage()
    client, worker = stage.client(), stage.worker(capacity=1, credit=1)
    for number in range(10):
        client.request(number, ttl_s=0.1)

    assert len(worker.work()) == 1
    assert client.hear_only(m.Error) == []


def places(client: Client) -> list[tuple[int, int]]:
    """Return what a client was told of places, by request."""
    told = [said for said in client.hear_only(m.Accepted) if "before" in said.ext]
    return [(int.from_bytes(said.rid, "big"), int(said.ext["before"] or 0)) for said in told]


def test_who_asks_hears_where_it_stands_once_a_second() -> None:
    """And how long it will take; who has not asked hears nothing of it, nor does who has a node."""
    stage, client, worker = slow_service(waiting=3)
    client.request(1, ext={"place": True})
    client.request(2)
    stage.pass_time(0.9)
    assert places(client) == []
    stage.pass_time(0.2)
    told = [said for said in client.hear_only(m.Accepted) if "before" in said.ext]
    assert [(said.rid, said.ext["before"]) for said in told] == [(rid_of(1), 3)]
    assert 5_000 <= int(told[0].ext["wait_ms"] or 0) <= 9_000

    for job in worker.work():
        worker.final(job.lease)
    stage.pass_time(1.0)
    assert places(client) == [(1, 2)]
    for _ in range(3):
        (job,) = worker.work()
        worker.final(job.lease)
    stage.pass_time(5.0)
    assert places(client) == []


def test_what_is_told_of_places_costs_a_bounded_time() -> None:
    """Of many thousands that wait each hears less often."""
    stage, _, _ = slow_service()
    queue = next(iter(stage.broker.state.services.values())).queue
    assert queue.tell_every_s == 1.0
    queue.count += 5000

    assert queue.tell_every_s == 5.0
    queue.count -= 5000


def test_a_snapshot_says_how_long_a_queue_is_in_seconds() -> None:
    """Three answers of two seconds each, and what runs; nothing where nothing waits."""
    stage, client, _ = slow_service()
    (idle,) = stage.broker.snapshot(stage.now).services
    for number in range(3):
        client.request(number)

    (busy,) = stage.broker.snapshot(stage.now).services
    assert (idle.queued, idle.wait_s) == (0, None)
    assert busy.queued == 3
    assert 5.0 <= (busy.wait_s or 0) <= 9.0
