"""Slow subscribers: what waits for them, what becomes of them, and that nobody else notices."""

from __future__ import annotations

from support.stage import STREAM, Stage, ask, rid_of
from zmqrt.protocol import messages as m


def test_a_shut_window_holds_units_back_and_an_open_one_lets_them_go() -> None:
    """One message may overshoot; then the client says what it has read."""
    _, client, worker, job = Stage(window_bytes=100).running(flags=STREAM)

    for seq in range(5):
        worker.partial(job.lease, seq, 1, b"%d" % seq * 60)
    first = client.hear_only(m.Partial)
    client.send(m.Window(120))
    second = client.hear_only(m.Partial)
    worker.final(job.lease, 5, b"end")
    client.send(m.Window(240))

    assert [p.seq for p in first] == [0, 1]
    assert [p.seq for p in second] == [2, 3]
    assert [type(one) for one in client.hear()] == [m.Partial, m.Final]


def test_results_count_as_well() -> None:
    """A unary answer waits for its turn too."""
    _, client, worker = Stage(window_bytes=100).with_peers()
    client.send(ask(1), ask(2))
    jobs = worker.work()

    for job in jobs:
        worker.final(job.lease, body=b"x" * 100)
    first = client.hear_only(m.Final)
    client.send(m.Window(100))

    assert [f.rid for f in first] == [rid_of(1)]
    assert [f.rid for f in client.hear_only(m.Final)] == [rid_of(2)]


def test_errors_are_never_held_back() -> None:
    """They are small, and the reason why a client may be waiting."""
    _, client, worker = Stage(window_bytes=10).with_peers()
    client.send(ask(1), ask(2))
    first, second = worker.work()
    worker.final(first.lease, body=b"x" * 100)
    client.hear()

    worker.error(second.lease, 500, "model_raised")

    assert [e.rid for e in client.hear_only(m.Error)] == [rid_of(2)]


def test_streams_of_one_client_share_its_window_in_turn() -> None:
    """None of them waits until another is done."""
    _, client, worker = Stage(window_bytes=100).with_peers()
    client.send(ask(1, flags=STREAM), ask(2, flags=STREAM))
    jobs = worker.work()
    for seq in range(4):
        for job in jobs:
            worker.partial(job.lease, seq, 1, b"x" * 50)
    client.hear()

    client.send(m.Window(100))
    client.send(m.Window(200))

    assert [(p.rid, p.seq) for p in client.hear_only(m.Partial)] == [
        (rid_of(1), 1),
        (rid_of(2), 1),
        (rid_of(1), 2),
        (rid_of(2), 2),
    ]


def test_a_stream_with_too_much_unread_is_given_up_alone() -> None:
    """Its neighbours on the same connection go on, and its node stops."""
    _, client, worker = Stage(window_bytes=100, unsent_bytes=500).with_peers()
    client.send(ask(1, flags=STREAM), ask(2, flags=STREAM))
    greedy, modest = worker.work()
    for seq in range(8):
        worker.partial(greedy.lease, seq, 1, b"x" * 100)

    errors = client.hear_only(m.Error)
    assert [(e.rid, e.code, e.reason, e.resume_n) for e in errors] == [(rid_of(1), 499, "slow_reader", 1)]
    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [greedy.lease]
    client.send(m.Window(100))
    worker.partial(modest.lease, 0)
    assert [p.rid for p in client.hear_only(m.Partial)] == [rid_of(2)]


def test_a_client_that_reads_nothing_is_given_up_after_the_eviction_time() -> None:
    """However little is unread."""
    stage, client, worker, job = Stage(window_bytes=100).running(flags=STREAM, ttl_s=100.0)
    for seq in range(3):
        worker.partial(job.lease, seq, 1, b"x" * 60)
    client.hear()

    stage.stay_alive(11, client, worker)

    errors = client.hear_only(m.Error)
    assert [(e.rid, e.reason) for e in errors] == [(rid_of(1), "slow_reader")]
    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [job.lease]


def test_a_slow_client_does_not_slow_the_others() -> None:
    """Its twin on another connection gets every unit at once."""
    stage = Stage(window_bytes=50)
    slow, quick, worker = stage.client(), stage.client(), stage.worker()
    slow.request(1, flags=STREAM)
    (job,) = worker.work()
    quick.request(1, flags=STREAM)

    consumed = 0
    for seq in range(6):
        worker.partial(job.lease, seq, 1, b"x" * 60)
        consumed += 60
        quick.send(m.Window(consumed))

    assert [p.seq for p in slow.hear_only(m.Partial)] == [0]
    assert [p.seq for p in quick.hear_only(m.Partial)] == [0, 1, 2, 3, 4, 5]


def test_a_client_cannot_claim_to_have_read_what_was_not_sent() -> None:
    """The window stays what it is."""
    _, client, worker, job = Stage(window_bytes=100).running(flags=STREAM)

    client.send(m.Window(2**62))
    for seq in range(4):
        worker.partial(job.lease, seq, 1, b"x" * 60)

    assert [p.seq for p in client.hear_only(m.Partial)] == [0, 1]


def test_a_smaller_window_may_be_asked_for() -> None:
    """HELLO names it; a larger one than the broker's is not given."""
    stage = Stage(window_bytes=1000)
    small, large, worker = stage.client(window_bytes=50), stage.client(window_bytes=10**9), stage.worker()

    for client in (small, large):
        client.request(1 if client is small else 2, flags=STREAM)
        (job,) = worker.work()
        for seq in range(20):
            worker.partial(job.lease, seq, 1, b"x" * 60)

    assert len(small.hear_only(m.Partial)) == 1
    assert len(large.hear_only(m.Partial)) == 17


def test_a_long_stream_keeps_no_more_than_the_bound() -> None:
    """What every subscriber was sent is dropped above it."""
    stage, client, worker, job = Stage(prefix_bytes=1000).running(flags=STREAM)

    for seq in range(200):
        worker.partial(job.lease, seq, 1, b"x" * 100)
        assert stage.broker.state.memory.held_bytes < 2500

    assert len(client.hear_only(m.Partial)) == 200


def test_a_lost_connection_frees_the_ended_answers_that_it_had_not_read() -> None:
    """They count against the memory of the broker, and the outcome is kept for a client that comes back."""
    stage = Stage(window_bytes=100)
    client, worker = stage.client(client_uuid=b"u" * 16), stage.worker()
    client.send(ask(1), ask(2))
    for job in worker.work():
        worker.final(job.lease, body=b"x" * 100)

    stage.gone(client)
    again = stage.client("new", client_uuid=b"u" * 16)
    again.request(2)

    assert stage.broker.state.memory.held_bytes == 0
    assert [f.rid for f in again.hear_only(m.Final)] == [rid_of(2)]
