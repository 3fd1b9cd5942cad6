"""Time: what it ends, and what makes it begin anew."""

from __future__ import annotations

from support.stage import STREAM, Client, Stage, Worker, rid_of
from zmqrt.protocol import messages as m


def stay_alive(stage: Stage, seconds: int, *peers: Client | Worker) -> None:
    """Let time pass while everybody gives signs of life."""
    for _ in range(seconds):
        for peer in peers:
            if isinstance(peer, Worker):
                peer.beat()
            else:
                peer.send(m.Ping(0))
        stage.pass_time(1.0)


def test_a_unary_request_has_so_much_time_in_all() -> None:
    """Queue and work together; then 504, and the node is told to stop."""
    stage = Stage()
    client, worker = stage.client(), stage.worker(credit=0)
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
    stage = Stage()
    client, worker = stage.client(), stage.worker(credit=0)
    client.request(1, ttl_s=2.0)

    stage.pass_time(2.1)

    (error,) = client.hear_only(m.Error)
    assert "no node was free" in error.text
    worker.beat(limit=4)
    assert worker.work() == []


def test_a_stream_lives_as_long_as_it_makes_progress() -> None:
    """Each unit gives it its time anew; standing still ends it."""
    stage = Stage()
    client, worker = stage.client(), stage.worker()
    client.request(1, flags=STREAM, ttl_s=3.0)
    (job,) = worker.work()

    for seq in range(6):
        stage.pass_time(2.5)
        worker.partial(job.lease, seq)
    assert client.hear_only(m.Error) == []
    stage.pass_time(3.1)

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.resume_n) == (504, "stalled", 6)


def test_a_stream_may_have_a_total_as_well() -> None:
    """`total_ms` in ext ends it, whatever its progress."""
    stage = Stage()
    client, worker = stage.client(), stage.worker()
    client.request(1, flags=STREAM, ttl_s=3.0, ext={"total_ms": 5000})
    (job,) = worker.work()

    for seq in range(3):
        stage.pass_time(2.0)
        worker.partial(job.lease, seq)

    assert [e.code for e in client.hear_only(m.Error)] == [504]


def test_heartbeats_go_out_every_half_interval() -> None:
    """Whatever else was sent; a little spread keeps a fleet from beating in step."""
    stage = Stage()
    worker = stage.worker()

    stay_alive(stage, 25, worker)

    beats = worker.hear_only(m.BrokerHeartbeat)
    assert 9 <= len(beats) <= 11
    # The first one was the answer to the word that the node is ready.
    assert [b.count for b in beats] == list(range(2, len(beats) + 2))
    assert {b.epoch for b in beats} == {worker.epoch}


def test_outcomes_are_kept_for_the_dedupe_window() -> None:
    """Twice the request timeout; then the same id runs again."""
    stage = Stage()
    client, worker = stage.client(), stage.worker(capacity=10)
    client.request(1)
    worker.final(worker.work()[0].lease)
    stay_alive(stage, 59, client, worker)
    client.request(1)
    assert worker.work() == []

    stay_alive(stage, 2, client, worker)
    client.request(1)

    assert len(worker.work()) == 1


def test_nothing_is_left_once_everything_is_over() -> None:
    """The tables are empty: what was held is given back."""
    stage = Stage()
    client, worker = stage.client(), stage.worker(capacity=10)
    for number in range(5):
        client.request(number, flags=STREAM)
    for seq, job in enumerate(worker.work()):
        worker.partial(job.lease, 0, 1, b"x" * 100)
        if seq % 2:
            worker.final(job.lease, 1)
    client.send(m.Bye())
    worker.send(m.Leave(worker.epoch))

    stage.pass_time(1200.0)

    house = stage.broker.house
    assert house.total_held_bytes() == 0
    assert not house.sessions
    assert not house.nodes_by_uuid
    assert not house.services
    assert not house.unheard
    wheels = (house.request_timers, house.session_timers, house.node_timers, house.service_timers)
    assert [len(wheel) for wheel in wheels] == [0, 0, 0, 0]
