"""CANCEL, from the client to the node."""

from __future__ import annotations

from support.stage import STREAM, Stage, rid_of
from zmqrt.protocol import messages as m


def test_cancel_reaches_the_node_and_is_answered() -> None:
    """The node frees the slot, the client hears 499."""
    _, client, worker, job = Stage().running(flags=STREAM)
    worker.partial(job.lease, 0)
    client.hear()

    client.send(m.Cancel(rid_of(1), "changed my mind"))

    assert worker.hear_only(m.WorkerCancel) == [m.WorkerCancel(job.lease, "changed my mind")]
    (error,) = client.hear_only(m.Error)
    assert (error.rid, error.code, error.reason, error.resume_n) == (rid_of(1), 499, "cancelled", 1)


def test_what_a_cancelled_node_still_sends_goes_nowhere() -> None:
    """It is late, and the node has been told already."""
    stage, client, worker, job = Stage().running(flags=STREAM)
    client.send(m.Cancel(rid_of(1)))
    worker.hear()
    client.hear()

    worker.partial(job.lease, 0)
    worker.final(job.lease, 1)

    assert (worker.hear(), client.hear()) == ([], [])
    assert stage.counters.late_reply == 2


def test_cancel_of_something_unknown_or_ended_is_ignored() -> None:
    """Its terminal message is on its way, or it never was."""
    _, client, worker = Stage().with_peers()
    client.request(1)
    worker.final(worker.work()[0].lease)
    client.hear()

    client.send(m.Cancel(rid_of(1)), m.Cancel(rid_of(2)))

    assert client.hear() == []


def test_nobody_can_cancel_what_another_session_waits_for() -> None:
    """A request id is no right."""
    stage = Stage()
    client, other, worker = stage.client(), stage.client(), stage.worker()
    client.request(1)
    worker.work()

    other.send(m.Cancel(rid_of(1)))

    assert worker.hear_only(m.WorkerCancel) == []


def test_a_cancelled_stream_can_be_gone_on_with() -> None:
    """Its units stay for the dedupe window, so that nothing is computed twice."""
    _, client, worker, job = Stage().running(flags=STREAM)
    for seq in range(3):
        worker.partial(job.lease, seq, 1, b"%d" % seq)
    client.send(m.Cancel(rid_of(1)))
    client.hear()

    client.request(1, flags=STREAM, resume_n=1)

    (again,) = worker.work()
    assert again.resume_n == 3
    assert [p.seq for p in client.hear_only(m.Partial)] == [1, 2]


def test_a_cancelled_unary_request_runs_again_when_asked_again() -> None:
    """499 is not replayed."""
    _, client, worker = Stage().with_peers()
    client.request(1)
    worker.work()
    client.send(m.Cancel(rid_of(1)))
    client.hear()

    client.request(1)

    assert len(worker.work()) == 1
