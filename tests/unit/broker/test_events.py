"""The event log of a broker: what happened to its nodes, and what became of requests because of it."""

from __future__ import annotations

import pytest

from support.stage import STREAM, Stage, ask
from zmqrt.protocol import messages as m
from zmqrt.protocol.snapshot import MAX_EVENTS, FleetEvent


def events(stage: Stage) -> list[FleetEvent]:
    """Read the log."""
    return stage.broker.snapshot(stage.now).events


def kinds(stage: Stage) -> list[tuple[str, str]]:
    """Read what happened, to whom."""
    return [(event.kind, event.subject) for event in events(stage)]


def test_a_node_from_coming_to_its_loss() -> None:
    """Each step once, with the requests that had to move."""
    stage = Stage()
    client = stage.client()
    worker = stage.worker("node-a")
    client.send(ask(1, flags=STREAM), ask(2, flags=STREAM))
    stage.pass_time(6.0)
    worker.beat()
    stage.gone(worker)
    stage.pass_time(2.0)

    assert kinds(stage) == [
        ("joined", "node-a"),
        ("ready", "node-a"),
        ("suspect", "node-a"),
        ("recovered", "node-a"),
        ("lost", "node-a"),
        ("resumed", "node-a"),
    ]
    last = events(stage)[-1]
    assert (last.count, last.level) == (2, "warning")
    assert "2 of its 2 requests go on elsewhere" in last.text


def test_a_node_that_freezes_and_returns() -> None:
    """Silence is told before it is acted upon."""
    stage = Stage()
    worker = stage.worker("node-a")
    stage.pass_time(11.0)
    worker.come_back(b"again")
    worker.beat()

    assert [kind for kind, _ in kinds(stage)][2:] == ["suspect", "evicted", "returned"]
    assert [event.level for event in events(stage) if event.kind == "evicted"] == ["error"]


def test_engines_that_restart_and_nodes_that_fail_or_leave() -> None:
    """From their own words."""
    stage = Stage()
    worker = stage.worker("node-a")
    worker.beat(devices=[m.DeviceLoad("d", "ready")])
    worker.beat(devices=[m.DeviceLoad("d", "restarting", restarts=2)])
    worker.beat(phase="failed")
    worker.send(m.Draining(worker.epoch))
    worker.send(m.Leave(worker.epoch))

    assert [(event.kind, event.count) for event in events(stage)][2:] == [
        ("restarted", 2),
        ("failed", 1),
        ("draining", 1),
        ("left", 1),
    ]


def test_a_device_that_has_to_do_without_something_is_told_once() -> None:
    """With the reason, when it is first heard, and again when it is another."""
    stage = Stage()
    worker = stage.worker("node-a")
    for words in ("", "no graphs: x", "no graphs: x", "", "no kernels: y"):
        worker.beat(devices=[m.DeviceLoad("d", "ready", fallback=words)])
        stage.pass_time(1.1)

    told = [(event.level, event.subject, event.text) for event in events(stage) if event.kind == "fallback"]
    assert told == [("warning", "node-a", "d: no graphs: x"), ("warning", "node-a", "d: no kernels: y")]


def test_a_flood_of_refusals_is_one_event_a_second() -> None:
    """That counts, and names one of them."""
    stage = Stage(queue_requests=1)
    client = stage.client()
    stage.worker(capacity=1)
    client.send(*(ask(number) for number in range(1, 40)))
    stage.pass_time(1.5)
    client.send(ask(50))

    rejected = [event for event in events(stage) if event.kind == "rejected"]
    assert [(event.subject, event.count) for event in rejected] == [("queue_full", 37), ("queue_full", 1)]
    assert rejected[1].rid.endswith("32")


def test_only_the_newest_are_kept() -> None:
    """However long the broker runs; the shell logs each once."""
    stage = Stage()
    for number in range(MAX_EVENTS):
        stage.worker(f"n{number}")

    told = events(stage)
    assert len(told) == MAX_EVENTS
    assert told[-1].id == 2 * MAX_EVENTS
    assert len(stage.broker.state.events.take_unlogged(stage.now)) == 2 * MAX_EVENTS
    assert stage.broker.state.events.take_unlogged(stage.now) == []


def test_what_may_happen_again_is_logged_when_its_second_is_over() -> None:
    """Once, with how often; under the names that its client and the wire have for one of them."""
    stage, client, worker = Stage().with_peers(capacity=9)
    events = stage.broker.state.events
    client.send(*(ask(number, ext={"request_id": f"job-{number}"}) for number in range(1, 6)))
    for job in worker.work():
        worker.error(job.lease, 500, "model_raised", "it broke")

    assert [event.kind for event in events.take_unlogged(stage.now)] == ["joined", "ready"]
    stage.pass_time(1.1)
    (event,) = events.take_unlogged(stage.now)
    assert (event.count, event.request_id, event.rid) == (5, "job-5", ask(5).rid.hex())


def test_words_of_peers_cannot_move_a_cursor_or_forge_a_line() -> None:
    """Names and errors are shown, with a mark for what is no character to be shown."""
    stage, client, worker = Stage().with_peers("node\x1b[2J")
    worker.beat(devices=[m.DeviceLoad("d\x07", "ready")])
    client.send(ask(1, ext={"request_id": "a\nERROR forged"}))
    worker.error(worker.work()[0].lease, 500, "model_raised", "line\r\nline\x1b]0;x\x07")

    snapshot = stage.broker.snapshot(stage.now)
    words = [snapshot.nodes[0].node_id, snapshot.nodes[0].devices[0].id]
    words += [part for event in snapshot.events for part in (event.subject, event.text, event.request_id)]
    assert all(one.isprintable() for one in words)
    assert snapshot.nodes[0].node_id.startswith("node")


def test_every_ending_without_a_result_is_counted_once() -> None:
    """As failed or as expired, and by its reason; what was only cancelled is neither."""
    stage, client, worker = Stage().with_peers(capacity=9)
    client.send(ask(1, flags=m.STREAM), ask(2), ask(3), ask(4, ttl_s=0.5))
    by_rid = {job.rid: job.lease for job in worker.work()}
    worker.error(by_rid[ask(2).rid], 504, "stalled", "it stood still")
    client.send(m.Cancel(ask(3).rid))
    stage.pass_time(0.6)
    stage.gone(worker)
    stage.pass_time(1.5)

    snapshot = stage.broker.snapshot(stage.now)
    failures = {reason: count for reason, count in snapshot.tallies["failures"].items() if count}
    assert failures == {"outcome_unknown": 1, "stalled": 1, "deadline_exceeded": 1}
    assert (snapshot.counters["failed"], snapshot.counters["expired"], snapshot.counters["cancelled"]) == (1, 2, 1)


def test_losses_and_cancellations_are_counted_by_reason() -> None:
    """All reasons stand there from the start, at 0."""
    stage, client, worker = Stage().with_peers("node-a", capacity=2)
    client.send(ask(1, flags=STREAM), ask(2), ask(3))
    (first, _) = worker.work()
    worker.partial(first.lease, 0)
    client.send(*(m.Cancel(ask(number).rid) for number in (1, 2, 3)))
    client.send(ask(4), ask(5))
    worker.beat(limit=4)
    worker.error(worker.work()[-1].lease, 503, "engine_restarted", "it died")
    stage.gone(worker)
    stage.pass_time(2.0)

    tallies = stage.broker.snapshot(stage.now).tallies
    assert tallies["cancellations"] == {"queued": 1, "prefill": 1, "decode": 1}
    assert {reason: count for reason, count in tallies["redispatches"].items() if count} == {
        "engine": 1,
        "node_lost": 1,
    }
    assert set(tallies["redispatches"]) >= {"node_silent", "handed_back", "gap"}


def test_failures_are_counted_by_reason() -> None:
    """Those whose time was up beside those that broke."""
    stage, client, worker = Stage().with_peers()
    client.send(ask(1), ask(2, ttl_s=1.0))
    worker.error(worker.work()[0].lease, 500, "model_raised", "it broke")
    stage.pass_time(1.5)

    snapshot = stage.broker.snapshot(stage.now)
    counted = {reason: count for reason, count in snapshot.tallies["failures"].items() if count}
    assert counted == {"model_raised": 1, "deadline_exceeded": 1}
    assert snapshot.tallies["failures"]["poison"] == 0
    assert (snapshot.counters["failed"], snapshot.counters["expired"]) == (1, 1)


@pytest.mark.parametrize(("code", "reason"), [(499, "cancelled"), (503, "broker_lost")])
def test_what_a_node_gives_up_by_itself_is_a_failure(code: int, reason: str) -> None:
    """Somebody still waits for it: it is no cancellation, no turn to another broker, and whoever looks finds it."""
    stage, client, worker = Stage().with_peers()
    client.send(ask(1))
    worker.error(worker.work()[0].lease, code, reason, "the engine gave the request up")

    snapshot = stage.broker.snapshot(stage.now)
    assert [error.code for error in client.hear_only(m.Error)] == [code]
    assert (snapshot.counters["failed"], snapshot.counters["cancelled"]) == (1, 0)
    assert (snapshot.tallies["failures"][reason], sum(snapshot.tallies["cancellations"].values())) == (1, 0)
    assert kinds(stage)[-1] == ("request_failed", reason)
