"""What nodes answer, and what becomes of answers that nobody waits for any more."""

from __future__ import annotations

import msgpack
import pytest

from support.stage import STREAM, UNARY, Stage, rid_of
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import TABLE, ErrorKind


def test_a_unary_answer_goes_to_its_client_untouched() -> None:
    """Body, meta and number of units as the node sent them."""
    _, client, worker, job = Stage().running()

    worker.send(m.WorkerFinal(worker.epoch, job.lease, 5, 5, {"finish_reason": "stop"}, b"\x80" * 9))

    assert client.hear() == [m.Final(rid_of(1), 5, {"finish_reason": "stop"}, b"\x80" * 9)]


def test_a_stream_arrives_unit_by_unit() -> None:
    """The first tells which weights answer, so that the client can say so to another broker."""
    _, client, worker, job = Stage().running(flags=STREAM)

    worker.partial(job.lease, 0, 2, b"ab")
    worker.partial(job.lease, 2, 1, b"c")
    worker.final(job.lease, 3)

    first, second, final = client.hear()
    assert first == m.Partial(rid_of(1), 0, 2, b"ab", {"revision": "r1", "service": "toy"})
    assert second == m.Partial(rid_of(1), 2, 1, b"c")
    assert final.total_n == 3


def test_units_of_a_unary_request_stay_here() -> None:
    """They are for another node to go on from, not for the client."""
    stage, client, worker, job = Stage().running(flags=UNARY | m.RESUMABLE)
    worker.partial(job.lease, 0, 2, b"ab")
    assert client.hear() == []
    other = stage.worker()

    worker.error(job.lease, 503, "engine_restarted")

    (again,) = other.work()
    assert (again.resume_n, msgpack.unpackb(again.resume)) == (2, [b"ab"])


@pytest.mark.parametrize(("seq", "why"), [(2, "gap"), (0, "overlap")])
def test_a_stream_with_a_gap_or_an_overlap_is_begun_again_elsewhere(seq: int, why: str) -> None:
    """Something was lost on the way: that attempt is stopped, and the units delivered are kept."""
    stage = Stage()
    client, worker, other = stage.client(), stage.worker(), stage.worker()
    client.request(1, flags=STREAM)
    (node,) = [one for one in (worker, other) if one.stage.said.get((one.side, one.peer))]
    (job,) = node.work()
    spare = other if node is worker else worker
    node.partial(job.lease, 0, 1, b"a")

    node.partial(job.lease, seq, 1, b"x")

    assert [c.lease for c in node.hear_only(m.WorkerCancel)] == [job.lease]
    (again,) = spare.work()
    assert (again.resume_n, msgpack.unpackb(again.resume)) == (1, [b"a"])
    assert [p.body for p in client.hear_only(m.Partial)] == [b"a"]
    assert stage.counters.stream_gaps == 1, why


def test_a_final_that_counts_a_unit_nobody_saw_is_a_gap() -> None:
    """The last PARTIAL was lost: the client must not be told that all is well."""
    _, client, worker, job = Stage().running(flags=STREAM)
    worker.partial(job.lease, 0)

    worker.final(job.lease, 2, credit=2)

    (again,) = worker.work()
    assert (again.resume_n, client.hear_only(m.Final)) == (1, [])


def test_an_empty_partial_is_no_progress() -> None:
    """It neither reaches the client nor keeps the stream alive."""
    stage, client, worker, job = Stage().running(flags=STREAM, ttl_s=3.0)

    for _ in range(4):
        worker.partial(job.lease, 0, 0)
        stage.pass_time(1.0)

    assert [type(one) for one in client.hear()] == [m.Accepted, m.Error]
    assert stage.counters.expired == 1


def test_a_late_answer_is_dropped_counted_and_answered_once() -> None:
    """The node is told once that the lease is void, however much it sends."""
    stage, client, worker = Stage().with_peers()

    for seq in range(3):
        worker.partial(12345, seq)
    worker.final(12345, 3)

    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [12345]
    assert client.hear() == []
    assert stage.counters.late_reply == 4


def test_an_answer_under_an_old_epoch_is_late() -> None:
    """Even if the lease lives."""
    stage, client, worker, job = Stage().running()

    worker.send(m.WorkerFinal(worker.epoch + 1, job.lease, 0, 9, {}, b"forged"))

    assert client.hear_only(m.Final) == []
    assert stage.counters.late_reply == 1


def test_a_node_cannot_answer_under_the_lease_of_another() -> None:
    """Leases are looked up among those of the node that speaks."""
    stage, client, worker = Stage().with_peers(capacity=1)
    client.request(1)
    (job,) = worker.work()
    thief = stage.worker()

    thief.final(job.lease, body=b"stolen")

    assert client.hear_only(m.Final) == []
    worker.final(job.lease, body=b"real")
    assert [f.body for f in client.hear_only(m.Final)] == [b"real"]


def test_the_credit_of_a_late_answer_counts() -> None:
    """The slot is free, whoever waited for the result."""
    _, client, worker = Stage().with_peers(capacity=1)
    client.request(1)
    (job,) = worker.work()
    client.send(m.Cancel(rid_of(1)))
    client.request(2)
    assert worker.work() == []

    worker.final(job.lease)

    assert [d.rid for d in worker.work()] == [rid_of(2)]


@pytest.mark.parametrize(
    "kind", [ErrorKind.MODEL_RAISED, ErrorKind.CONTEXT_EXCEEDED, ErrorKind.WRONG_TASK, ErrorKind.TOO_LARGE]
)
def test_an_error_that_would_come_again_is_the_end(kind: ErrorKind) -> None:
    """It is told as the node told it, and no other node is bothered."""
    stage = Stage()
    client, worker, other = stage.client(), stage.worker(), stage.worker()
    client.request(1)
    (node,) = [one for one in (worker, other) if one.stage.said.get((one.side, one.peer))]
    (job,) = node.work()

    node.error(job.lease, TABLE[kind].code, kind.value, "it raised")

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.retryable, error.text) == (TABLE[kind].code, kind.value, False, "it raised")
    assert worker.work() == other.work() == []


def test_accepted_comes_when_nothing_else_did() -> None:
    """After 100 ms, once; a request that is answered sooner never costs it."""
    stage, client, worker = Stage().with_peers()
    client.request(1)
    client.request(2)
    worker.final(worker.work()[0].lease)
    client.hear()

    stage.pass_time(0.09)
    early = client.hear()
    stage.pass_time(0.5)

    assert early == []
    assert client.hear() == [m.Accepted(rid_of(2))]


def test_a_unit_implies_accepted() -> None:
    """A stream that has begun needs no other sign."""
    stage, client, worker = Stage().with_peers()
    client.request(1, flags=STREAM)
    worker.partial(worker.work()[0].lease, 0)

    stage.pass_time(0.5)

    assert client.hear_only(m.Accepted) == []
