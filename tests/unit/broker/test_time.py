"""Time: what it ends, and what makes it begin anew."""

from __future__ import annotations

from support.stage import STREAM, UNARY, Stage, rid_of
from zmqrt.protocol import messages as m


def test_a_unary_request_has_so_much_time_in_all() -> None:
    """Queue and work together; then 504, and the node is told to stop."""
    stage, client, worker = Stage().with_peers(credit=0)
    client.request(1, ttl_s=5.0)
    stage.pass_time(3.0)
    worker.beat(limit=1)
    (job,) = worker.work()

    stage.pass_time(1.9)
    before = client.hear_only(m.Error)
    stage.pass_time(0.2)

    assert before == []
    (error,) = client.hear_only(m.Error)
    assert (error.rid, error.code, error.reason, error.retryable) == (rid_of(1), 504, "deadline_exceeded", False)
    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [job.lease]


def test_what_expires_in_the_queue_is_told_why() -> None:
    """Nothing was ever dispatched."""
    stage, client, worker = Stage().with_peers(credit=0)
    client.request(1, ttl_s=2.0)

    stage.pass_time(2.1)

    (error,) = client.hear_only(m.Error)
    assert "no node was free" in error.text
    worker.beat(limit=4)
    assert worker.work() == []


def test_a_stream_lives_as_long_as_it_makes_progress() -> None:
    """Each unit gives it its time anew; standing still ends it."""
    stage, client, worker, job = Stage().running(flags=STREAM, ttl_s=3.0)

    for seq in range(6):
        stage.pass_time(2.5)
        worker.partial(job.lease, seq)
    assert client.hear_only(m.Error) == []
    stage.pass_time(3.1)

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.resume_n) == (504, "stalled", 6)


def test_a_stream_may_have_a_total_as_well() -> None:
    """`total_ms` in ext ends it, whatever its progress."""
    stage, client, worker, job = Stage().running(flags=STREAM, ttl_s=3.0, ext={"total_ms": 5000})

    for seq in range(3):
        stage.pass_time(2.0)
        worker.partial(job.lease, seq)

    assert [e.code for e in client.hear_only(m.Error)] == [504]


def test_heartbeats_go_out_every_half_interval() -> None:
    """Whatever else was sent; a little spread keeps a fleet from beating in step."""
    stage = Stage()
    worker = stage.worker()

    stage.stay_alive(25, worker)

    beats = worker.hear_only(m.BrokerHeartbeat)
    assert 9 <= len(beats) <= 11
    assert [b.heard for b in beats] == sorted(b.heard for b in beats)
    assert {b.epoch for b in beats} == {worker.epoch}


def test_outcomes_are_kept_for_the_dedupe_window() -> None:
    """Twice the request timeout; then the same id runs again."""
    stage, client, worker = Stage().with_peers(capacity=10)
    client.request(1)
    worker.final(worker.work()[0].lease)
    stage.stay_alive(59, client, worker)
    client.request(1)
    assert worker.work() == []

    stage.stay_alive(2, client, worker)
    client.request(1)

    assert len(worker.work()) == 1


def test_nothing_is_left_once_everything_is_over() -> None:
    """The tables are empty: what was held is given back."""
    stage, client, worker = Stage().with_peers(capacity=10)
    for number in range(5):
        client.request(number, flags=STREAM)
    for seq, job in enumerate(worker.work()):
        worker.partial(job.lease, 0, 1, b"x" * 100)
        if seq % 2:
            worker.final(job.lease, 1)
    client.send(m.Bye())
    worker.send(m.Leave(worker.epoch))

    stage.pass_time(1200.0)

    state = stage.broker.state
    assert state.held_bytes() == 0
    assert not state.sessions
    assert not state.nodes_by_uuid
    assert not state.services
    assert not state.unacknowledged
    queues = (state.request_timers, state.session_timers, state.node_timers, state.service_timers)
    assert [len(timers) for timers in queues] == [0, 0, 0, 0]


PATIENT = {"progress": True}


def test_a_whole_answer_that_makes_progress_is_alive_and_its_client_is_told() -> None:
    """Its units are journalled here, so they are known; ACCEPTED comes again while there are new ones."""
    stage, client, worker, job = Stage().running(flags=UNARY | m.RESUMABLE, ttl_s=4.0, ext=PATIENT)
    assert job.ttl_ms == 4000
    for seq in range(5):
        stage.pass_time(2.0)
        worker.partial(job.lease, seq)
    stage.pass_time(1.1)

    told = [one.ext["units"] for one in client.hear_only(m.Accepted) if one.ext]
    assert told == [1, 2, 3, 4, 5]
    stage.pass_time(3.0)
    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason) == (504, "stalled")


def test_a_whole_answer_of_a_client_that_does_not_say_so_has_its_whole_time() -> None:
    """As in every earlier version."""
    stage, client, worker, job = Stage().running(flags=UNARY | m.RESUMABLE, ttl_s=4.0)
    for seq in range(3):
        stage.pass_time(1.5)
        worker.partial(job.lease, seq)

    assert [(e.code, e.reason) for e in client.hear_only(m.Error)] == [(504, "deadline_exceeded")]


def test_a_prompt_that_is_read_is_progress_if_its_node_says_so() -> None:
    """For a stream too: its first unit may take long. An empty PARTIAL that says nothing is none."""
    stage, client, worker = Stage().with_peers(capacity=2)
    client.request(1, flags=STREAM, ttl_s=4.0)
    client.request(2, flags=STREAM, ttl_s=4.0)
    one, two = worker.work()
    for _ in range(3):
        stage.pass_time(2.0)
        worker.send(m.WorkerPartial(worker.epoch, one.lease, 0, 0, b"", {"progress": True}))
        worker.partial(two.lease, 0, 0)

    assert [error.rid for error in client.hear_only(m.Error)] == [two.rid]


def test_waiting_in_a_queue_that_moves_is_progress() -> None:
    """Whatever moves it, and as long as it does."""
    stage, client, worker = Stage().with_peers(capacity=1)
    client.request(1, flags=STREAM, ttl_s=4.0)
    waits = client.request(2, ttl_s=4.0, ext=PATIENT)
    total = client.request(3, ttl_s=30.0, ext={**PATIENT, "total_ms": 5000})
    (job,) = worker.work()
    for seq in range(4):
        stage.pass_time(3.0)
        worker.partial(job.lease, seq)

    said = client.hear()
    assert [one.rid for one in said if isinstance(one, m.Error)] == [total]
    assert {one.rid for one in said if isinstance(one, m.Accepted) and one.ext} == {waits}
    stage.pass_time(4.5)
    assert {error.rid for error in client.hear_only(m.Error)} == {waits, job.rid}


def test_the_first_dispatch_is_progress_and_gives_the_node_the_whole_time() -> None:
    """However long it waited for a node before."""
    stage, client, worker = Stage().with_peers(credit=0)
    client.request(1, flags=STREAM, ttl_s=4.0)
    stage.pass_time(3.0)
    worker.limit = 1
    worker.beat()

    (job,) = worker.work()
    assert job.ttl_ms == 4000
    stage.pass_time(3.5)
    assert client.hear_only(m.Error) == []
