"""Sessions of clients: how they open, what keeps them, and what becomes of their requests when they go."""

from __future__ import annotations

from support.stage import STREAM, Stage, ask, rid_of
from zmqrt.broker.core import Side
from zmqrt.protocol import messages as m


def test_hello_is_answered_with_the_numbers_both_must_agree_on() -> None:
    """WELCOME carries the broker's name, a session id and its timers."""
    stage = Stage(outstanding=7)
    client = stage.client(greets=False)

    client.send(m.Hello(client.uuid, 1, 1))

    (welcome,) = client.hear()
    assert isinstance(welcome, m.Welcome)
    assert (welcome.broker_id, welcome.broker_epoch) == ("b", 7)
    assert welcome.params.heartbeat_ms == 5000
    assert welcome.params.max_outstanding == 7


def test_hello_may_stand_before_a_request_in_one_envelope() -> None:
    """There is no extra round trip."""
    stage = Stage()
    worker = stage.worker()
    client = stage.client(greets=False)

    client.send(m.Hello(client.uuid, 1, 1), ask(1))

    assert [d.rid for d in worker.work()] == [rid_of(1)]


def test_hello_twice_keeps_the_session() -> None:
    """The second is answered like the first."""
    stage = Stage()
    client = stage.client(greets=False)

    client.send(m.Hello(client.uuid, 1, 1), m.Hello(client.uuid, 1, 1))

    first, second = client.hear_only(m.Welcome)
    assert first == second


def test_a_request_before_hello_is_told_to_greet_first() -> None:
    """Each request hears it; of other messages only the first."""
    stage = Stage()
    client = stage.client(greets=False)

    client.send(m.Ping(1), m.Ping(2), ask(1), ask(2))

    errors = client.hear_only(m.Error)
    assert [e.rid for e in errors] == [None, rid_of(1), rid_of(2)]
    assert {(e.code, e.reason, e.retryable) for e in errors} == {(401, "no_session", True)}


def test_a_client_of_another_version_is_told_ours() -> None:
    """It gets 426 and no session."""
    stage = Stage()
    client = stage.client(greets=False)

    client.send(m.Hello(client.uuid, 2, 3))

    (refusal,) = client.hear_only(m.Error)
    assert (refusal.rid, refusal.code) == (None, 426)
    assert not stage.broker.is_known(Side.CLIENTS, client.peer)


def test_no_more_sessions_than_the_bound() -> None:
    """The one too many is told to come later."""
    stage = Stage(sessions=2)
    stage.client()
    stage.client()
    third = stage.client(greets=False)

    third.send(m.Hello(third.uuid, 1, 1))

    (refusal,) = third.hear_only(m.Error)
    assert (refusal.code, refusal.retryable) == (429, True)


def test_ping_is_answered_with_the_load() -> None:
    """PONG carries the nonce, what waits, and how many nodes are well."""
    stage = Stage()
    client, _ = stage.client(), stage.worker(credit=0)
    client.request(1)

    client.send(m.Ping(77))

    assert client.hear_only(m.Pong) == [m.Pong(77)]


def test_bye_cancels_what_the_session_waits_for() -> None:
    """The node is told to stop, and nothing is said to the client that left."""
    stage, client, worker, job = Stage().running()

    client.send(m.Bye())

    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [job.lease]
    assert client.hear() == []
    assert stage.broker.snapshot(stage.now).running == 0


def test_a_lost_connection_is_forgiven_for_some_seconds() -> None:
    """The same client comes back over another connection and gets the answer."""
    stage = Stage()
    client, worker = stage.client("old", client_uuid=b"u" * 16), stage.worker()
    client.request(1)
    (job,) = worker.work()
    stage.gone(client)
    stage.pass_time(4.0)

    again = stage.client("new", client_uuid=b"u" * 16)
    again.request(1)
    worker.final(job.lease, body=b"answer")

    assert [f.body for f in again.hear_only(m.Final)] == [b"answer"]
    assert worker.work() == []


def test_a_lost_client_that_stays_away_has_its_work_cancelled() -> None:
    """After the grace the node is told to stop."""
    stage, client, worker, job = Stage().running()
    stage.gone(client)

    stage.pass_time(4.9)
    before = worker.hear_only(m.WorkerCancel)
    stage.pass_time(0.2)

    assert before == []
    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [job.lease]


def test_the_answer_for_a_lost_client_is_kept_until_it_asks_again() -> None:
    """What ended while nobody listened is replayed."""
    stage = Stage()
    client, worker = stage.client("old", client_uuid=b"u" * 16), stage.worker()
    client.request(1)
    (job,) = worker.work()
    stage.gone(client)
    worker.final(job.lease, body=b"answer")

    again = stage.client("new", client_uuid=b"u" * 16)
    again.request(1)

    assert [f.body for f in again.hear_only(m.Final)] == [b"answer"]
    assert stage.counters.replays == 1


def test_a_client_that_waits_in_silence_counts_as_gone() -> None:
    """Twice the eviction time without a word, with a request open: gone; then the grace."""
    stage, client, worker = Stage().with_peers()
    client.request(1, flags=STREAM, ttl_s=300.0)
    worker.work()

    stage.stay_alive(24, worker)
    assert stage.counters.sessions_lost == 1
    assert worker.hear_only(m.WorkerCancel) == []
    stage.stay_alive(2, worker)

    assert len(worker.hear_only(m.WorkerCancel)) == 1


def test_a_client_that_pings_keeps_its_slow_stream() -> None:
    """Any message counts as life."""
    stage, client, worker, job = Stage().running(flags=STREAM, ttl_s=300.0)

    for second in range(90):
        worker.beat()
        if second % 2:
            client.send(m.Ping(second))
        stage.pass_time(1.0)
    worker.partial(job.lease, 0)

    assert len(client.hear_only(m.Partial)) == 1


def test_an_idle_session_is_probed_now_and_then() -> None:
    """Something is sent after a minute of silence, so that libzmq tells if nobody is there."""
    stage = Stage()
    client = stage.client()

    stage.pass_time(59.0)
    before = client.hear()
    stage.pass_time(2.0)

    assert before == []
    assert client.hear() == [m.Pong(0)]


def test_a_connection_with_a_new_owner_is_a_new_session() -> None:
    """The principal is pinned: another one under the same routing id has no session."""
    stage = Stage()
    client = stage.client("c", user="alice")
    client.request(1)

    stage.handle(Side.CLIENTS, b"c", m.Ping(1), user="mallory")

    assert [e.code for e in client.hear_only(m.Error)][-1] == 401
    assert not stage.broker.is_known(Side.CLIENTS, b"c")
