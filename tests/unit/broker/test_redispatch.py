"""What happens to a request whose node is lost: it goes on elsewhere, exactly where it stopped, or says why not."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from support.stage import STREAM, UNARY, Stage, Worker, ask, offer, rid_of
from zmqrt.protocol import messages as m


def lose(stage: Stage, worker: Worker) -> None:
    """Kill a node for good."""
    stage.gone(worker)
    stage.pass_time(1.1)


def test_a_stream_goes_on_at_the_exact_unit() -> None:
    """The next node gets the units delivered, byte for byte, under a fresh lease."""
    stage, client, worker, job = Stage().running(flags=STREAM, body=b"prompt")
    worker.partial(job.lease, 0, 2, b"ab")
    worker.partial(job.lease, 2, 1, b"c" * 300)
    lose(stage, worker)

    other = stage.worker()

    (again,) = other.work()
    assert again.lease != job.lease
    assert (again.rid, again.body, again.resume_n, again.attempt) == (rid_of(1), b"prompt", 3, 1)
    assert again.flags == STREAM | m.RESUME
    assert msgpack.unpackb(again.resume) == [b"ab", b"c" * 300]
    other.partial(again.lease, 3, 1, b"d")
    other.final(again.lease, 4)
    assert [(p.seq, p.body) for p in client.hear_only(m.Partial)] == [(0, b"ab"), (2, b"c" * 300), (3, b"d")]
    assert (stage.counters.redispatches, stage.counters.resumes) == (1, 1)


def test_what_comes_back_goes_before_what_waits() -> None:
    """In the order it had."""
    stage, client, worker = Stage().with_peers(capacity=2)
    client.send(ask(1), ask(2), ask(3, prio=100))
    worker.work()
    lose(stage, worker)

    other = stage.worker(capacity=10)

    assert [d.rid for d in other.work()] == [rid_of(1), rid_of(2), rid_of(3)]


def test_it_goes_to_another_node_if_there_is_one() -> None:
    """Not back to the one that failed it, however free that is."""
    stage = Stage()
    client, failing, busy = stage.client(), stage.worker(capacity=10), stage.worker(capacity=10)
    client.send(*(ask(n) for n in range(8)))
    jobs = failing.work()
    busy.work()
    for job in jobs[1:]:
        failing.final(job.lease)

    failing.error(jobs[0].lease, 503, "engine_restarted", credit=1)

    assert [d.rid for d in busy.work()] == [jobs[0].rid]


def test_it_goes_back_to_the_only_node() -> None:
    """Better than waiting for nobody."""
    _, _, worker, job = Stage().running()

    worker.error(job.lease, 503, "engine_restarted", credit=1)

    assert [d.attempt for d in worker.work()] == [2]


def test_what_must_not_run_twice_does_not() -> None:
    """502 outcome_unknown, and no node gets it."""
    stage = Stage()
    client, worker, other = stage.client(), stage.worker(capacity=1), stage.worker(capacity=1)
    client.send(ask(1, flags=0), ask(2, flags=0))
    worker.work()
    other.work()

    lose(stage, worker)
    other.beat(limit=5)

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.retryable) == (502, "outcome_unknown", False)
    assert other.work() == []


def test_a_stream_that_cannot_resume_says_what_was_delivered() -> None:
    """502 with the unit it had come to."""
    stage, client, worker, job = Stage().running(flags=m.IDEMPOTENT | m.STREAM)
    worker.partial(job.lease, 0, 4)

    lose(stage, worker)

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.resume_n) == (502, "not_resumable", 4)


def test_a_stream_that_cannot_resume_begins_again_if_nothing_was_delivered() -> None:
    """Nobody would notice."""
    stage, client, worker = Stage().with_peers()
    client.request(1, flags=m.IDEMPOTENT | m.STREAM)
    worker.work()
    lose(stage, worker)

    assert len(stage.worker().work()) == 1


def test_attempts_are_counted_and_end() -> None:
    """Five dispatches without a unit, then 502."""
    _, client, worker = Stage().with_peers(capacity=1)
    client.request(1)

    attempts: list[int] = []
    for _ in range(5):
        (job,) = worker.work()
        attempts.append(job.attempt)
        worker.error(job.lease, 503, "draining", credit=1)

    assert attempts == [1, 2, 3, 4, 5]
    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.retryable) == (502, "worker_lost", True)


def test_each_new_unit_gives_the_attempts_back() -> None:
    """Twenty losses in a row do no harm to a stream that moves."""
    stage, client, worker = Stage().with_peers(capacity=1)
    client.request(1, flags=STREAM, ttl_s=60.0)

    for seq in range(20):
        (job,) = worker.work()
        assert (job.resume_n, job.attempt) == (seq, 1)
        worker.partial(job.lease, seq)
        worker.error(job.lease, 503, "engine_restarted", credit=1)

    assert client.hear_only(m.Error) == []
    assert stage.counters.redispatches == 20


def test_a_request_that_kills_three_engines_in_a_row_is_poison() -> None:
    """It is not given to a fourth, and not to be sent again."""
    stage, client, worker = Stage().with_peers(capacity=1)
    client.request(1)

    for _ in range(3):
        worker.error(worker.work()[0].lease, 503, "engine_restarted", credit=1)

    assert worker.work() == []
    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.retryable) == (502, "poison", False)
    assert stage.counters.poisoned == 1


@pytest.mark.parametrize("told", [3, 2**60])
def test_a_node_may_tell_how_many_engines_died_of_a_request(told: int) -> None:
    """It has several, and tries another one by itself."""
    _, client, worker = Stage().with_peers(capacity=1)
    client.request(1)

    worker.error(worker.work()[0].lease, 503, "engine_restarted", credit=1, ext={"crashes": told})

    assert [error.reason for error in client.hear_only(m.Error)] == ["poison"]


@pytest.mark.parametrize("told", [0, -1, "many", None])
def test_what_did_not_run_when_an_engine_died_is_no_suspect(told: int | str | None) -> None:
    """Nor is anything made of a number that is none."""
    _, client, worker = Stage().with_peers(capacity=1)
    client.request(1)

    for _ in range(4):
        worker.error(worker.work()[0].lease, 503, "engine_restarted", credit=1, ext={"crashes": told})

    assert [d.attempt for d in worker.work()] == [5]
    assert client.hear_only(m.Error) == []


def test_a_stream_that_ran_well_on_lost_nodes_is_no_suspect() -> None:
    """Its neighbour, which had made nothing yet, is: after three nodes it is given up alone."""
    stage = Stage()
    client = stage.client()
    client.send(ask(1, flags=STREAM, ttl_s=60.0), ask(2, ttl_s=60.0))

    for seq in range(3):
        worker = stage.worker()
        lease = next(job.lease for job in worker.work() if job.rid == rid_of(1))
        worker.partial(lease, seq)
        lose(stage, worker)

    assert [(error.rid, error.reason) for error in client.hear_only(m.Error)] == [(rid_of(2), "poison")]


def test_nodes_that_fell_silent_did_not_crash() -> None:
    """Three evictions do not make a poison of an innocent request."""
    stage, client, worker = Stage().with_peers()
    client.request(1, ttl_s=300.0)

    for _ in range(4):
        stage.stay_alive(11, client)
        worker = stage.worker()

    assert [d.attempt for d in worker.work()] == [5]
    assert client.hear_only(m.Error) == []


def test_a_started_stream_goes_on_only_with_the_same_weights() -> None:
    """It waits for them, lets others pass, and goes on when they come."""
    stage, client, worker = Stage().with_peers(services=[offer(revision="r1")])
    client.request(1, flags=STREAM, ttl_s=60.0)
    worker.partial(worker.work()[0].lease, 0)
    other = stage.worker(services=[offer(revision="r2")])
    lose(stage, worker)
    client.request(2)
    assert [d.rid for d in other.work()] == [rid_of(2)]

    same = stage.worker(services=[offer(revision="r1")])

    assert [(d.rid, d.resume_n) for d in same.work()] == [(rid_of(1), 1)]


def test_a_started_stream_whose_weights_are_gone_ends() -> None:
    """After the eviction time: 502 with what was delivered."""
    stage, client, worker = Stage().with_peers(services=[offer(revision="r1")])
    client.request(1, flags=STREAM, ttl_s=60.0)
    worker.partial(worker.work()[0].lease, 0, 2)
    other = stage.worker(services=[offer(revision="r2")])
    lose(stage, worker)

    stage.stay_alive(11, client, other)

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.resume_n) == (502, "not_resumable", 2)


def test_a_started_stream_waits_for_its_weights_whenever_its_first_deadline_was() -> None:
    """That one has moved on with the units; when it passes, the node may have been gone for a moment only."""
    stage, client, worker = Stage().with_peers()
    client.request(1, flags=STREAM, ttl_s=5.0)
    stage.pass_time(3.0)
    worker.partial(worker.work()[0].lease, 0, 2)
    lose(stage, worker)
    stage.pass_time(1.0)

    assert client.hear_only(m.Error) == []
    assert [job.resume_n for job in stage.worker().work()] == [2]


def test_a_unary_request_begins_anew_with_other_weights() -> None:
    """Its client has seen nothing, so nothing has to match."""
    stage, client, worker = Stage().with_peers(services=[offer(revision="r1")])
    client.request(1, flags=UNARY | m.RESUMABLE)
    worker.partial(worker.work()[0].lease, 0, 2)
    other = stage.worker(services=[offer(revision="r2")])

    lose(stage, worker)

    assert [(d.rid, d.resume_n, d.resume) for d in other.work()] == [(rid_of(1), 0, b"")]


def test_a_prefix_too_long_to_keep_is_the_clients_own_business() -> None:
    """502, retryable: the client has the units and can resume with them."""
    stage, client, worker, job = Stage(prefix_bytes=1000).running(flags=STREAM)
    for seq in range(8):
        worker.partial(job.lease, seq, 1, b"x" * 200)

    lose(stage, worker)

    assert len(client.hear()) == 9
    assert stage.broker.state.held_bytes() < 2000  # the prefix was given up


def test_a_client_brings_its_own_units_from_another_broker() -> None:
    """RESUME: the blob goes through, later units are added, and the same weights are asked for."""
    stage, client, worker = Stage().with_peers(services=[offer(revision="r1")])
    blob = msgpack.packb([b"ab", b"c"])

    client.request(1, flags=STREAM | m.RESUME, resume_n=3, resume=blob, ext={"revision": "r1"})

    (job,) = worker.work()
    assert (job.resume_n, msgpack.unpackb(job.resume), job.flags) == (3, [b"ab", b"c"], STREAM | m.RESUME)
    worker.partial(job.lease, 3, 1, b"d")
    lose(stage, worker)
    (again,) = stage.worker(services=[offer(revision="r1")]).work()
    assert (again.resume_n, msgpack.unpackb(again.resume)) == (4, [b"ab", b"c", b"d"])
    assert [p.seq for p in client.hear_only(m.Partial)] == [3]


def test_a_stream_that_has_begun_elsewhere_is_bound_by_no_queue_and_goes_first() -> None:
    """A broker that takes over from a lost one must not let its subscribers wait until new work is done."""
    stage, client, worker = Stage(in_flight=2).with_peers(capacity=1, services=[offer(revision="r1")])
    client.send(*(ask(number, ttl_s=60.0) for number in range(4)))  # one runs, two wait, one is refused
    assert [error.reason for error in client.hear_only(m.Error)] == ["queue_full"]
    other = stage.client()

    for number in (7, 8):
        blob = msgpack.packb([b"a"])
        other.request(number, flags=STREAM | m.RESUME, resume_n=1, resume=blob, ext={"revision": "r1"}, ttl_s=60.0)

    assert other.hear_only(m.Error) == []
    order: list[bytes] = []
    for _ in range(5):
        (job,) = worker.work()
        order.append(job.rid)
        worker.final(job.lease, job.resume_n, credit=1)
    assert order == [rid_of(number) for number in (0, 7, 8, 1, 2)]


@pytest.mark.parametrize(
    ("flags", "more", "code"),
    [
        (STREAM, {"resume_n": 3}, 400),
        (STREAM | m.RESUME, {"resume_n": 3, "resume": b"\xc0"}, 400),
        (STREAM | m.RESUME, {"resume_n": 3, "resume": b""}, 400),
        (STREAM | m.RESUME, {"resume_n": 3, "resume": b"\x91" + b"x" * (1 << 20)}, 413),
        (m.STREAM | m.IDEMPOTENT, {"resume_n": 3}, 502),
    ],
)
def test_a_resume_that_cannot_be_is_refused(flags: int, more: dict[str, Any], code: int) -> None:
    """Without the units, with a blob that is no array, or too large."""
    _, client, worker = Stage().with_peers()

    client.request(1, flags=flags, **more)

    assert [e.code for e in client.hear_only(m.Error)] == [code]
    assert worker.work() == []
