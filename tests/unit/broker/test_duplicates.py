"""The same request id once more."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from support.stage import STREAM, UNARY, Stage, rid_of
from zmqrt.protocol import messages as m


def test_a_twin_joins_and_both_are_answered_by_one_run() -> None:
    """It gets the units it lacks, then what comes."""
    stage, first, worker, job = Stage().running(flags=STREAM)
    second = stage.client()
    worker.partial(job.lease, 0, 2, b"ab")
    worker.partial(job.lease, 2, 1, b"c")

    second.request(1, flags=STREAM)
    worker.partial(job.lease, 3, 1, b"d")
    worker.final(job.lease, 4)

    for twin in (first, second):
        heard = twin.hear()
        assert [one.body for one in heard] == [b"ab", b"c", b"d", b"done"]
    assert worker.work() == []
    assert stage.counters.twins == 1


def test_a_twin_is_brought_up_from_the_unit_it_has() -> None:
    """From the chunk that holds it; the client trims."""
    stage, _, worker, job = Stage().running(flags=STREAM)
    second = stage.client()
    for seq in (0, 2, 4):
        worker.partial(job.lease, seq, 2)

    second.request(1, flags=STREAM, resume_n=3)

    assert [p.seq for p in second.hear_only(m.Partial)] == [2, 4]


def test_a_lease_is_cancelled_when_the_last_reader_goes() -> None:
    """Not before."""
    stage, first, worker, job = Stage().running()
    second = stage.client()
    second.request(1)

    first.send(m.Cancel(rid_of(1)))
    assert worker.hear() == []
    assert [e.code for e in first.hear_only(m.Error)] == [499]
    second.send(m.Bye())

    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [job.lease]


def test_the_last_connection_of_one_client_wins() -> None:
    """A reconnect takes over; it is no twin of itself."""
    stage = Stage()
    old, worker = stage.client("old", client_uuid=b"u" * 16), stage.worker()
    old.request(1)
    (job,) = worker.work()
    new = stage.client("new", client_uuid=b"u" * 16)
    new.request(1)

    worker.final(job.lease)

    assert old.hear_only(m.Final) == []
    assert len(new.hear_only(m.Final)) == 1


def test_a_request_sent_twice_on_one_connection_is_one_request() -> None:
    """The library sends again when ACCEPTED stays away."""
    _, client, worker = Stage().with_peers()
    client.request(1)
    client.request(1)

    (job,) = worker.work()
    worker.final(job.lease)

    assert len(client.hear_only(m.Final)) == 1


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("change", [{"body": b"other"}, {"service": "b"}, {"flags": STREAM}])
def test_the_same_id_for_something_else_is_refused(ended: bool, change: dict[str, Any]) -> None:  # noqa: FBT001
    """409, while it runs and afterwards."""
    stage, _, worker, job = Stage().running()
    second = stage.client()
    if ended:
        worker.final(job.lease)

    second.request(1, **change)

    assert [(e.code, e.reason) for e in second.hear_only(m.Error)] == [(409, "request_id_reused")]


def test_an_ended_request_is_answered_from_the_cache() -> None:
    """Unit by unit, and its end; nothing runs again."""
    stage, _, worker, job = Stage().running(flags=STREAM)
    second = stage.client()
    worker.partial(job.lease, 0, 1, b"a")
    worker.partial(job.lease, 1, 1, b"b")
    worker.final(job.lease, 2, b"end")

    second.request(1, flags=STREAM, resume_n=1)

    partial, final = second.hear()
    assert (partial.body, final.body) == (b"b", b"end")
    assert partial.ext["service"] == job.service  # and so another broker can go on with the same model
    assert worker.work() == []
    assert stage.counters.replays == 1


def test_a_final_error_is_replayed_and_a_retryable_one_is_not() -> None:
    """What invites another try must run."""
    _, client, worker = Stage(attempts=1).with_peers()
    client.request(1)
    worker.error(worker.work()[0].lease, 500, "model_raised", credit=1)
    client.request(2)
    worker.error(worker.work()[0].lease, 503, "draining", credit=1)
    client.hear()

    client.request(1)
    client.request(2)

    assert [(e.rid, e.code) for e in client.hear_only(m.Error)] == [(rid_of(1), 500)]
    assert [d.rid for d in worker.work()] == [rid_of(2)]


def test_so_many_may_read_one_request() -> None:
    """The ninth is refused."""
    stage = Stage(subscribers=2)
    clients = [stage.client() for _ in range(3)]
    stage.worker()

    for client in clients:
        client.request(1)

    assert [len(client.hear_only(m.Error)) for client in clients] == [0, 0, 1]


def test_a_client_with_its_own_units_takes_the_request_over() -> None:
    """RESUME supersedes: the old run is stopped, its other subscribers may ask again."""
    stage, first, worker, job = Stage().running(flags=STREAM)
    second = stage.client()
    worker.partial(job.lease, 0, 1, b"a")
    first.hear()

    second.request(1, flags=STREAM | m.RESUME, resume_n=5, resume=msgpack.packb([b"abcde"]))

    assert [(e.code, e.retryable) for e in first.hear_only(m.Error)] == [(503, True)]
    cancel, again = worker.hear()
    assert (cancel.lease, again.resume_n) == (job.lease, 5)


def test_a_twin_that_asks_for_units_nobody_has_made_is_refused() -> None:
    """Without the units themselves that cannot be."""
    stage = Stage()
    first, second, worker = stage.client(), stage.client(), stage.worker()
    first.request(1, flags=STREAM)
    worker.partial(worker.work()[0].lease, 0)

    second.request(1, flags=STREAM, resume_n=2)

    assert [e.code for e in second.hear_only(m.Error)] == [400]


def test_a_refused_twin_of_ones_own_request_is_the_end_of_it() -> None:
    """An ERROR under an id is terminal: nothing more may come under it."""
    _, client, worker, job = Stage().running(flags=UNARY)

    client.request(1, flags=UNARY, body=b"other")
    worker.final(job.lease)

    assert [type(one) for one in client.hear()] == [m.Error]
