"""What cannot be read: complained about, counted, and in the end ignored."""

from __future__ import annotations

from support.stage import Client, Stage, Worker, ask, rid_of
from zmqrt.broker.core import Side
from zmqrt.protocol import messages as m
from zmqrt.protocol.codec import BadMessage
from zmqrt.protocol.errors import ProtocolError


def strike(stage: Stage, who: Client | Worker, times: int = 1) -> None:
    """Send envelopes that cannot be read."""
    for _ in range(times):
        stage.broker.bad_input(who.side, who.peer, [BadMessage("nonsense")], stage.now)
        stage.collect()


def test_a_bad_message_is_refused_under_its_own_id() -> None:
    """One strike for the envelope, however many there are."""
    stage = Stage()
    client = stage.client()

    stage.broker.bad_input(
        Side.CLIENTS, client.peer, [BadMessage("no ttl", rid_of(5)), BadMessage("?", None)], stage.now
    )
    stage.collect()

    assert [(e.rid, e.code, e.text) for e in client.hear_only(m.Error)] == [
        (rid_of(5), 400, "no ttl"),
        (None, 400, "?"),
    ]
    assert stage.counters.strikes == 1


def test_a_complaint_never_ends_a_request_that_lives() -> None:
    """An ERROR under its id would."""
    stage, client, worker, job = Stage().running()

    stage.broker.bad_input(Side.CLIENTS, client.peer, [BadMessage("no ttl", rid_of(1))], stage.now)
    stage.collect()
    worker.final(job.lease)

    error, final = client.hear()
    assert (error.rid, final.rid) == (None, rid_of(1))


def test_eight_strikes_in_ten_seconds_close_the_session() -> None:
    """Its work is cancelled, and for a minute nobody listens."""
    stage, client, worker, job = Stage().running()

    strike(stage, client, 8)

    assert [c.lease for c in worker.hear_only(m.WorkerCancel)] == [job.lease]
    assert client.hear()[-1].code == 403
    client.send(m.Hello(client.uuid, 1, 1), ask(2))
    strike(stage, client)
    assert (client.hear(), worker.work()) == ([], [])
    assert (stage.counters.strikes, stage.counters.muted) == (8, 1)
    assert stage.broker.is_muted(Side.CLIENTS, client.peer, stage.now + 59)
    assert not stage.broker.is_muted(Side.CLIENTS, client.peer, stage.now + 61)


def test_strikes_that_are_far_apart_are_forgiven() -> None:
    """Seven in ten seconds, again and again."""
    stage = Stage()
    client = stage.client()

    for _ in range(5):
        strike(stage, client, 7)
        stage.pass_time(10.1)
        client.send(m.Ping(0))

    assert stage.counters.muted == 0


def test_a_node_is_closed_the_same_way() -> None:
    """Its requests go elsewhere."""
    stage, client, worker = Stage().with_peers()
    client.request(1)
    worker.work()
    other = stage.worker()

    strike(stage, worker, 8)

    assert [d.code for d in worker.hear_only(m.Dismiss)] == [400]
    assert len(other.work()) == 1


def test_another_version_is_answered_in_a_form_that_all_can_read_but_not_for_ever() -> None:
    """A token bucket; and it is a strike."""
    stage = Stage()
    for number in range(50):
        error = ProtocolError("", peer_major=2)
        stage.broker.bad_input(Side.CLIENTS, b"%d" % number, error, stage.now)

    assert len(stage.broker.version_answers) == 20
    assert stage.counters.strikes == 50


def test_whoever_does_not_speak_zrt_hears_nothing() -> None:
    """An answer would not be understood; a bad envelope of ours is answered."""
    stage = Stage()

    stage.broker.bad_input(Side.CLIENTS, b"http", ProtocolError("GET /", is_foreign=True), stage.now)
    stage.broker.bad_input(Side.CLIENTS, b"zrt", ProtocolError("10 frames"), stage.now)
    stage.collect()

    assert [peer for _, peer in stage.said] == [b"zrt"]
    assert stage.counters.strikes == 2


def test_a_flood_of_pings_is_a_strike() -> None:
    """Twenty at once are fine, ten a second are; more is not answered."""
    stage = Stage()
    client = stage.client()

    client.send(*(m.Ping(n) for n in range(19)))
    assert stage.counters.strikes == 0
    client.send(*(m.Ping(n) for n in range(100)))

    assert stage.counters.strikes == 1
    assert len(client.hear_only(m.Pong)) == 19


def test_a_flood_of_heartbeats_is_a_strike() -> None:
    """The same for nodes."""
    stage = Stage()
    worker = stage.worker()

    for _ in range(30):
        worker.beat()

    assert 0 < stage.counters.strikes <= 12


def test_strangers_leave_nothing_behind() -> None:
    """Twenty thousand connections with seven strikes each are forgotten."""
    stage = Stage()
    for number in range(25_000):
        peer = number.to_bytes(5, "big")
        stage.broker.bad_input(Side.CLIENTS, peer, ProtocolError("no", is_foreign=True), stage.now)
    strikes = stage.broker.state.client_strikes

    assert len(strikes) <= 20_000
    stage.pass_time(11.0)

    assert len(strikes) == 0
