"""Nodes: how they register, what shows that they are well, and what follows when they are not."""

from __future__ import annotations

import pytest

from support.stage import STREAM, UNARY, Stage, Worker, ask, rid_of
from zmqrt.broker.core import Side
from zmqrt.protocol import messages as m


def health(stage: Stage) -> list[str]:
    """Return the states of all nodes."""
    return [node.health for node in stage.broker.snapshot(stage.now).nodes]


def test_ready_is_answered_with_an_epoch() -> None:
    """Each registration gets a fresh one."""
    stage = Stage()
    first, second = Worker(stage, "a", "", 4), Worker(stage, "b", "", 4)

    epochs = [welcome.epoch for one in (first, second) if (welcome := one.register())]

    assert len(set(epochs)) == 2
    assert health(stage) == ["active", "active"]


def test_ready_twice_on_one_session_ends_it() -> None:
    """As in MDP: the node is void, and its requests go elsewhere."""
    stage, client, worker = Stage().with_peers()
    client.request(1)
    worker.hear()

    worker.register()

    assert [d.code for d in worker.hear_only(m.Dismiss)] == [409]
    assert health(stage) == []
    other = stage.worker()
    assert [d.rid for d in other.work()] == [rid_of(1)]


def test_a_node_that_registers_anew_replaces_its_old_session() -> None:
    """Same principal: the old connection is told that it is void, the epoch is new."""
    stage = Stage()
    worker = stage.worker()
    epoch = worker.epoch

    worker.come_back(b"again")

    assert [d.code for d in stage.said.pop((Side.WORKERS, worker.name.encode()))] == [409]
    assert worker.epoch > epoch
    assert health(stage) == ["active"]


def test_the_id_of_a_node_belongs_to_its_principal() -> None:
    """Another one cannot take its place."""
    stage = Stage()
    worker = stage.worker("w", user="fleet")
    thief = Worker(stage, "w", "mallory", 4)
    thief.peer = b"thief"

    thief.register()

    assert [d.code for d in thief.hear_only(m.Dismiss)] == [403]
    client = stage.client()
    client.request(1)
    assert len(worker.work()) == 1


def test_a_node_of_another_version_is_told_ours() -> None:
    """426, and it is not registered."""
    stage = Stage()
    worker = Worker(stage, "w", "", 4)

    worker.register(min_version=2, max_version=3)

    assert [d.code for d in worker.hear_only(m.Dismiss)] == [426]
    assert health(stage) == []


def test_a_stranger_is_told_to_register() -> None:
    """Once per envelope, whatever it sends."""
    stage = Stage()
    stranger = Worker(stage, "w", "", 4)

    stranger.send(m.WorkerFinal(1, 1, 0, 1, {}, b""), m.Credit(1, 5), m.Heartbeat(1, 1, 0, 1, "ready"))

    assert [d.code for d in stranger.hear()] == [401]
    assert stage.counters.late_reply == 1


def test_a_silent_node_is_suspect_then_evicted_then_forgotten() -> None:
    """5.5, 10 and 20 seconds; and it is asked at once when it falls silent."""
    stage = Stage()
    worker = stage.worker()
    seen: list[tuple[float, list[str]]] = []

    for tenth in range(210):
        stage.pass_time(0.1)
        if not seen or seen[-1][1] != health(stage):
            seen.append((round(tenth / 10 + 0.1, 1), health(stage)))

    assert [states for _, states in seen] == [["active"], ["suspect"], ["evicted"], []]
    assert [at for at, _ in seen[1:]] == pytest.approx([5.5, 10.0, 20.0], abs=0.11)
    assert len(worker.hear_only(m.BrokerHeartbeat)) == 5  # one every 2.5 s until it is evicted, and the question


def test_a_suspect_node_gets_no_new_work_until_it_is_heard_of() -> None:
    """What it has goes on."""
    stage, client, worker, job = Stage().running(ttl_s=60.0)
    stage.pass_time(6.0)
    client.request(2, ttl_s=60.0)
    assert worker.work() == []

    worker.beat()

    assert [d.rid for d in worker.work()] == [rid_of(2)]
    worker.final(job.lease)
    assert [f.rid for f in client.hear_only(m.Final)] == [rid_of(1)]


def test_a_node_whose_engine_stands_still_is_suspect_though_it_speaks() -> None:
    """Its process lives, its loop does not turn."""
    stage, client, worker = Stage().with_peers()

    worker.beat(loop_age_ms=5001)
    client.request(1)
    assert (health(stage), worker.work()) == (["suspect"], [])
    worker.beat(loop_age_ms=20)

    assert (health(stage), len(worker.work())) == (["active"], 1)


def test_an_evicted_node_is_told_so_and_may_register_anew() -> None:
    """A frozen process that wakes up: its results are fenced, its leases are others'."""
    stage = Stage()
    client, frozen = stage.client(), stage.worker()
    client.request(1, ttl_s=60.0)
    (job,) = frozen.work()
    stage.pass_time(4.0)
    other = stage.worker()
    for _ in range(4):
        stage.pass_time(2.0)
        other.beat()
    assert [d.rid for d in other.work()] == [rid_of(1)]
    frozen.hear()

    frozen.final(job.lease, body=b"too late")

    assert [d.code for d in frozen.hear_only(m.Dismiss)] == [401]
    assert client.hear_only(m.Final) == []
    assert stage.counters.late_reply == 1
    frozen.come_back(b"thawed", held=[m.Held(job.lease, rid_of(1), 0)])
    (welcome,) = frozen.hear_only(m.WorkerWelcome)
    assert welcome.rebound == []
    assert health(stage) == ["active", "active"]


def test_a_lost_node_has_a_second_to_come_back_for_its_leases() -> None:
    """WELCOME names those that are still its own and the unit each goes on from; the rest went elsewhere."""
    stage, client, worker = Stage().with_peers()
    client.send(ask(1, flags=STREAM), ask(2, flags=STREAM))
    first, second = worker.work()
    worker.partial(first.lease, 0, 2)
    stage.gone(worker)
    stage.pass_time(0.9)
    assert health(stage) == ["lost"]

    worker.come_back(b"again", held=[m.Held(first.lease, rid_of(1), 5), m.Held(999, rid_of(7), 1)])

    (welcome,) = worker.hear_only(m.WorkerWelcome)
    assert welcome.rebound == [m.Rebound(first.lease, 2)]
    worker.beat(limit=4)
    (again,) = worker.work()
    assert (again.rid, again.lease != second.lease) == (rid_of(2), True)
    worker.partial(first.lease, 2, 3)
    assert [p.seq for p in client.hear_only(m.Partial)] == [0, 2]


def test_a_lost_node_that_does_not_come_back_has_its_work_done_elsewhere() -> None:
    """After about a second, not after the eviction time."""
    stage, client, worker = Stage().with_peers()
    client.request(1)
    worker.work()
    other = stage.worker()

    stage.gone(worker)
    stage.pass_time(0.9)
    before = other.work()
    stage.pass_time(0.2)

    assert before == []
    assert [d.attempt for d in other.work()] == [2]
    assert len(health(stage)) == 1


def test_a_node_that_leaves_hands_its_work_over_at_once() -> None:
    """It said so itself: no grace."""
    stage, client, worker = Stage().with_peers()
    client.request(1)
    worker.work()
    other = stage.worker()

    worker.send(m.Leave(worker.epoch))

    assert len(other.work()) == 1


def test_a_draining_node_finishes_what_it_has_and_gets_nothing_more() -> None:
    """Its results are welcome."""
    stage, client, worker, job = Stage().running()

    worker.send(m.Draining(worker.epoch))
    client.request(2)
    worker.final(job.lease)

    assert health(stage) == ["draining"]
    assert worker.work() == []
    assert [f.rid for f in client.hear_only(m.Final)] == [rid_of(1)]


@pytest.mark.parametrize("flags", [UNARY, STREAM])
def test_a_connection_with_a_new_owner_is_not_the_node(flags: int) -> None:
    """The principal is pinned: the old node has left, the new one is a stranger."""
    stage, client, worker = Stage().with_peers("w", user="fleet")
    client.request(1, flags=flags)
    worker.hear()

    stage.handle(Side.WORKERS, b"w", m.Heartbeat(worker.epoch, 1, 0, 4, "ready"), user="mallory")

    assert [d.code for d in worker.hear_only(m.Dismiss)] == [401]
    assert health(stage) == []
