"""EXPLAIN: what happened to a request, in the order in which it happened."""

from __future__ import annotations

import pytest

from support.stage import STREAM, UNARY, Client, Stage, ask, rid_of
from zmqrt.broker import history
from zmqrt.protocol import messages as m
from zmqrt.protocol import request_trace as s


def explain(client: Client, name: str) -> list[s.RequestTrace]:
    """Ask as `zmqrt explain` does."""
    client.send(m.Query(3, "explain", {"request": name}))
    (answer,) = client.hear_only(m.Status)
    assert (answer.qid, answer.schema, answer.version) == (3, s.SCHEMA, s.SCHEMA_VERSION)
    return s.decode(answer.body)


def test_a_request_that_survived_its_node() -> None:
    """Both nodes, how far each came, why it moved, and where the time went."""
    stage = Stage()
    client, first = stage.client(), stage.worker("node-a")
    client.request(1, flags=STREAM, ext={"request_id": "job-7"})
    (job,) = first.work()
    stage.pass_time(0.5)
    told: m.Ext = {"device": "cuda:1", "batch": 3, "wait_us": 100_000, "prefill_us": 300_000}
    first.send(m.WorkerPartial(first.epoch, job.lease, 0, 4, b"four", told))
    stage.pass_time(1.0)
    stage.gone(first)
    stage.pass_time(1.5)
    second = stage.worker("node-b")
    (again,) = second.work()
    second.partial(again.lease, 4, 1)
    second.final(again.lease, 5)
    client.hear()
    stage.pass_time(10.0)

    (one,) = explain(client, "job-7")

    assert (one.state, one.units, one.rid, one.ago_s) == ("done", 5, rid_of(1).hex(), 13.0)
    assert [(a.node, a.from_unit, a.units) for a in one.attempts] == [("node-a", 0, 4), ("node-b", 4, 1)]
    lost, last = one.attempts
    assert (lost.device, lost.batch, lost.prefill_s, lost.why) == ("cuda:1", 3, 0.3, "node node-a was lost")
    assert (lost.first_s, lost.last_s) == (0.5, 0.5)
    assert lost.ended_s == pytest.approx(2.5, abs=0.02)  # the broker's timers tick
    assert (last.why, last.dispatched_s) == ("", 3.0)
    parts = s.spent(one.age_s, one.attempts)
    assert parts.lost_s == pytest.approx(2.0, abs=0.02)
    assert parts.queue_s == pytest.approx(0.5, abs=0.02)
    assert explain(client, rid_of(1).hex()) == [one]


def test_a_request_that_waits_says_behind_how_many_and_why() -> None:
    """And one that runs, where."""
    stage = Stage()
    client = stage.client()
    stage.worker("node-a", capacity=1)
    client.send(*(ask(number) for number in (1, 2, 3)))
    stage.pass_time(2.0)

    (running,), (waiting,) = explain(client, rid_of(1).hex()), explain(client, rid_of(3).hex())

    assert (running.state, running.attempts[0].node, running.attempts[0].ended_s) == ("dispatched", "node-a", None)
    assert (waiting.state, waiting.queued_behind, waiting.queued_why) == ("queued", 1, "the only node was busy")
    assert waiting.age_s == 2.0


def test_a_cancelled_and_a_failed_one() -> None:
    """The error that it ended with is part of the story."""
    _, client, worker = Stage().with_peers()
    client.send(ask(1), ask(2))
    client.send(m.Cancel(rid_of(1), "no longer wanted"))
    second = worker.work()[1]
    worker.error(second.lease, 500, "model_raised", "it broke")
    client.hear()

    (cancelled,), (failed,) = explain(client, rid_of(1).hex()), explain(client, rid_of(2).hex())

    assert (cancelled.state, cancelled.code, cancelled.text) == ("cancelled", 499, "no longer wanted")
    assert (failed.state, failed.code, failed.reason, failed.text) == ("failed", 500, "model_raised", "it broke")


def test_others_requests_are_explained_to_admins_alone() -> None:
    """Equal names of two users are two requests."""
    stage = Stage(is_admin=lambda user: user == "boss")
    stage.worker()
    anna, bert, boss = (stage.client(user=user) for user in ("anna", "bert", "boss"))
    anna.send(ask(1, ext={"request_id": "same"}))
    bert.send(ask(2, ext={"request_id": "same"}))

    assert [one.user for one in explain(anna, "same")] == ["anna"]
    assert sorted(one.user for one in explain(boss, "same")) == ["anna", "bert"]
    assert explain(bert, rid_of(1).hex()) == []


def test_the_last_attempt_that_was_lost_is_told_once() -> None:
    """It ended the request: the parts add up to its age, and to no more."""
    stage, client, worker = Stage().with_peers("node-a")
    client.request(1, flags=m.STREAM, ext={"traceparent": "00-aa-bb-01"})
    (job,) = worker.work()
    stage.pass_time(1.0)
    worker.partial(job.lease, 0)
    stage.gone(worker)
    stage.pass_time(3.0)
    (error,) = client.hear_only(m.Error)

    (story,) = explain(client, rid_of(1).hex())
    assert (story.state, story.reason, len(story.attempts)) == ("failed", "outcome_unknown", 1)
    assert story.attempts[0].why == "node node-a was lost"
    parts = s.spent(story.age_s, story.attempts)
    assert sum(getattr(parts, name) for name in parts.__struct_fields__) == pytest.approx(story.age_s)
    assert (error.ext["attempts"], error.ext["dispatch_us"]) == (1, 0)


def test_a_node_that_hands_back_for_ever_does_not_fill_the_memory() -> None:
    """The first and the newest attempts are kept; and of what nodes say only what a story needs."""
    _, client, worker = Stage().with_peers("node-a")
    client.request(1, flags=STREAM, ttl_s=1000.0)
    for number in range(100):
        (job,) = worker.work()
        told: m.Ext = {f"key{one}": "x" * 200 for one in range(10)}
        worker.send(m.WorkerPartial(worker.epoch, job.lease, number, 1, b"u", told))
        worker.error(job.lease, 503, "engine_restarted", "it died", credit=1, ext={"crashes": 0})

    (story,) = explain(client, rid_of(1).hex())
    assert 2 < len(story.attempts) <= 22
    assert story.attempts[0].from_unit == 0
    assert story.attempts[-1].from_unit == 100
    assert len(s.encode([story])) < 10_000


@pytest.mark.parametrize("args", [{}, {"request": ""}, {"request": 5}, {"request": "unknown"}])
def test_what_nobody_knows_has_no_story(args: dict[str, str | int]) -> None:
    """An empty answer, not an error: another broker may know."""
    stage = Stage()
    client = stage.client()
    client.send(m.Query(3, "explain", {**args}))

    (answer,) = client.hear_only(m.Status)

    assert s.decode(answer.body) == []


def test_the_oldest_stories_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are kept as the module says."""
    monkeypatch.setattr(history, "KEPT", 3)
    _, client, worker = Stage().with_peers()
    for number in range(1, 6):
        client.request(number, flags=UNARY)
        (job,) = worker.work()
        worker.final(job.lease)
    client.hear()

    assert [bool(explain(client, rid_of(number).hex())) for number in range(1, 6)] == [False] * 2 + [True] * 3


def test_a_client_that_traces_is_told_where_the_time_went() -> None:
    """With the answer; others are told nothing, which costs nothing."""
    stage, client, worker = Stage().with_peers("node-a")
    client.send(ask(1, ext={"traceparent": "00-aa-bb-01"}), ask(2))
    stage.pass_time(0.25)
    for job in worker.work():
        told: m.Ext = {"device": "d", "batch": 2, "wait_us": 0, "prefill_us": 100_000}
        worker.send(m.WorkerFinal(worker.epoch, job.lease, 0, 9, {}, b"", told))

    traced, plain = client.hear_only(m.Final)

    assert plain.ext == {}
    assert traced.ext == {
        "queue_us": 0,
        "dispatch_us": 150_000,
        "prefill_us": 100_000,
        "decode_us": 0,
        "lost_us": 0,
        "broker": "b",
        "attempts": 1,
        "node": "node-a",
        "device": "d",
        "batch": 2,
    }
