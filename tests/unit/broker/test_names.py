"""Which models there are: what lives stands in the lists, what is gone does not, and nobody can make the list grow."""

from __future__ import annotations

import pytest

from support.stage import Stage, Worker, offer
from zmqrt.protocol import messages as m
from zmqrt.protocol import snapshot as s
from zmqrt.protocol.limits import MAX_AWAITED_SERVICES, MAX_FLEET_PARTS, MAX_FLEET_SERVICES, MAX_SERVICES
from zmqrt.protocol.prometheus import of_fleet


def listed(stage: Stage) -> list[str]:
    """Ask for the models, as the library does."""
    stage.pass_time(0.11)  # a snapshot is told again for so long
    client = stage.client()
    client.send(m.Query(1, "services"))
    (status,) = client.hear_only(m.Status)
    names = [one.service for one in s.decode(status.body).services]
    whole = stage.broker.snapshot(stage.now)
    assert names == [one.service for one in whole.services if one.is_listed]
    return names


def test_a_model_whose_node_has_left_makes_place_for_the_one_that_has_come() -> None:
    """A swap: until the new one serves the old one is still named, then no more."""
    stage = Stage()
    old = stage.worker(services=[offer("old")])
    new = Worker(stage, "new", "", 4)
    new.register(services=[offer("new")])
    new.beat(phase="loading", limit=4)
    assert listed(stage) == ["old"]

    old.send(m.Leave(old.epoch))
    assert listed(stage) == ["old"]
    new.beat(phase="ready")

    assert listed(stage) == ["new"]


def test_a_model_that_was_lost_a_moment_ago_is_a_choice_until_its_grace_is_over() -> None:
    """Its node comes back within seconds of a restart; after that nobody waits for it."""
    stage = Stage()
    other, lost = stage.worker(services=[offer("a")]), stage.worker(services=[offer("b")])
    stage.gone(lost)
    assert listed(stage) == ["a", "b"]

    for _ in range(5):
        stage.pass_time(stage.timing.eviction_s / 4)
        other.beat()

    assert listed(stage) == ["a"]


def test_a_node_that_never_comes_up_hides_nothing_however_often_it_starts() -> None:
    """A typo in its model's name, and a supervisor that starts it again and again."""
    stage = Stage()
    stage.worker(services=[offer("good")])
    for number in range(20):
        typo = Worker(stage, f"typo-{number}", "", 4)
        typo.register(services=[offer("godo")])
        assert listed(stage) == ["good"]
        typo.beat(phase="loading", limit=0)
        assert listed(stage) == ["good"]
        typo.beat(phase="failed", limit=0)
        typo.send(m.Leave(typo.epoch, "cannot load"))
        assert listed(stage) == ["good"]
        stage.pass_time(0.3)


def test_a_draining_node_is_no_choice_beside_one_that_serves() -> None:
    """And the choice is still there while nothing else of its task is."""
    stage = Stage()
    first = stage.worker(services=[offer("first")])
    first.send(m.Draining(first.epoch))
    assert listed(stage) == ["first"]

    stage.worker(services=[offer("second")])

    assert listed(stage) == ["second"]


def test_tasks_are_looked_at_apart() -> None:
    """A model that embeds and still loads is the choice for embeddings, whatever generates."""
    stage = Stage()
    stage.worker(services=[offer("chat")])
    loading = stage.worker(services=[m.ServiceOffer("vectors", 4, "embed")])
    loading.beat(phase="loading")
    assert listed(stage) == ["chat", "vectors"]


def test_an_unknown_model_is_answered_with_the_ones_that_live() -> None:
    """The same list as everywhere."""
    stage = Stage()
    stage.worker("keeps", services=[offer("here")])
    gone = stage.worker(services=[offer("gone")])
    gone.send(m.Leave(gone.epoch))
    stage.pass_time(2.0)
    client = stage.client()

    client.request(1, service="nobody")

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.text) == (404, "no model 'nobody' here; known: here")


def test_new_names_in_heartbeats_leave_nothing_behind() -> None:
    """A name that a node takes back, and that never answered anything, is gone at once."""
    stage = Stage()
    stage.worker("honest")
    noisy = stage.worker("noisy")
    for number in range(200):
        noisy.beat(services=[offer(f"name-{number}-{each}") for each in range(MAX_SERVICES)])
        stage.pass_time(0.2)

    assert len(stage.broker.state.services) <= MAX_SERVICES + 1
    assert stage.counters.strikes == 0


def test_what_has_served_is_remembered_when_its_node_takes_it_back() -> None:
    """Its numbers are still asked for."""
    stage, client, worker = Stage().with_peers(services=[offer("a"), offer("b")])
    client.request(1, service="a")
    worker.final(worker.work()[0].lease)

    worker.beat(services=[offer("c")])

    assert [one.service for one in stage.broker.snapshot(stage.now).services] == ["a", "c"]


def test_names_are_bounded_in_all_and_those_that_live_stay() -> None:
    """Who brings one more is told; what departed first makes room."""
    stage = Stage()
    first = stage.worker("first", services=[offer("precious")])
    for number in range(MAX_FLEET_SERVICES // MAX_SERVICES):
        names = [offer(f"n{number}-{each}") for each in range(MAX_SERVICES)]
        stage.worker(f"w{number}", services=names)
    state = stage.broker.state
    assert len(state.services) == MAX_FLEET_SERVICES
    assert "precious" in state.services
    assert [e.kind for e in state.events.newest()].count("failed") == 1

    stage.gone(Worker(stage, "w0", "", 4))
    stage.pass_time(2.0)
    stage.worker("late", services=[offer("late")])

    assert "late" in state.services
    assert first.name in [node.node_id for node in stage.broker.snapshot(stage.now).nodes]


def test_nodes_that_come_and_go_with_new_names_are_bounded() -> None:
    """Each connection may bring its own."""
    stage = Stage()
    stage.worker("honest", services=[offer("real")])
    for number in range(20):
        names = [offer(f"n{number}-{each}") for each in range(MAX_SERVICES)]
        stage.gone(stage.worker(f"w{number}", services=names))

    stage.pass_time(2.0)
    assert len(stage.broker.state.services) <= MAX_FLEET_SERVICES
    stage.pass_time(2 * stage.timing.eviction_s)
    assert len(stage.broker.state.services) <= 1 + 1  # the honest one, which fell silent


def test_clients_make_no_services() -> None:
    """A new broker waits for a few names that nobody has offered; the others are told to come again."""
    stage = Stage()
    client = stage.client()
    for number in range(3 * MAX_AWAITED_SERVICES):
        client.request(number, service=f"name-{number}")
    assert len(stage.broker.state.services) == MAX_AWAITED_SERVICES
    assert {error.code for error in client.hear_only(m.Error)} == {503}

    stage.pass_time(stage.timing.eviction_s + 1.0)
    assert not stage.broker.state.services


def test_the_parts_of_a_fleet_are_bounded() -> None:
    """Devices without end over many connections: beyond the bound a node is told so, and nothing of it stays."""
    stage = Stage()
    devices = [m.DeviceInfo(f"d{n}", "gpu", ext={"note": "x" * 200}) for n in range(64)]
    last = MAX_FLEET_PARTS // 65 + 2
    for number in range(last + 1):
        Worker(stage, f"w{number}", "", 4).register(services=[], devices=devices)

    assert stage.broker.state.parts <= MAX_FLEET_PARTS
    (said,) = stage.said[Worker.side, f"w{last}".encode()]
    assert (said.code, "most" in said.text) == (503, True)


def test_ready_again_and_again_is_a_flood() -> None:
    """Registering costs more than a heartbeat, so it is counted like one."""
    stage = Stage()
    for number in range(40):
        Worker(stage, "w", "", 4).register(services=[offer(f"n{number}")])
    assert stage.counters.muted == 1


@pytest.mark.parametrize("state", ["active", "suspect", "draining"])
def test_nobody_takes_the_place_of_a_node_that_is_connected(state: str) -> None:
    """Its uuid is no secret and its key may be shared: without the proof it came with nobody is that node."""
    stage = Stage()
    worker = stage.worker("w")
    if state == "suspect":
        stage.pass_time(stage.timing.suspect_s + 0.1)
    elif state == "draining":
        worker.send(m.Draining(worker.epoch))
    client = stage.client()
    thief = Worker(stage, "w", "", 4)
    thief.peer = b"elsewhere"

    thief.ext = {}
    assert thief.register() is None
    assert thief.register(ext={"proof": "a guess"}) is None

    assert [one.code for one in thief.hear()] == [409, 409]
    (node,) = stage.broker.snapshot(stage.now).nodes
    assert node.health == state
    if state == "active":
        client.request(1)
        assert len(worker.work()) == 1


def test_a_node_comes_back_over_another_connection_by_its_proof() -> None:
    """Before the broker has noticed that the old one is gone."""
    _, _, worker, job = Stage().running()

    welcome = worker.come_back(b"again", held=[m.Held(job.lease, job.rid, 0)])

    assert welcome is not None
    assert [one.lease for one in welcome.rebound] == [job.lease]


def test_a_node_without_a_proof_is_waited_for() -> None:
    """Of another implementation: it comes back when the broker has noticed that its old connection is gone."""
    stage = Stage()
    worker = Worker(stage, "w", "", 4)
    worker.ext = {}
    worker.register()
    old, worker.peer = worker.peer, b"again"
    assert worker.register() is None
    assert stage.said.pop((Worker.side, old))[-1] == m.BrokerHeartbeat(1, 0)

    worker.hear()
    stage.broker.peer_gone(Worker.side, old, stage.now)
    assert worker.register() is not None


def test_a_proof_is_told_to_nobody() -> None:
    """What everybody can ask for has the uuid, and not the proof."""
    stage = Stage()
    stage.worker("w")
    assert b"made up by" not in s.encode(stage.broker.snapshot(stage.now))


def test_two_nodes_of_one_name_are_told_of_and_both_counted() -> None:
    """An event and a log line say so at once; each has series of its own."""
    stage = Stage()
    client = stage.client()
    first, second = Worker(stage, "first", "", 4), Worker(stage, "second", "", 4)
    device = m.DeviceInfo("cuda:0", "gpu")
    for worker in (first, second):
        name, worker.name = worker.name, "gpu-box"
        worker.register(devices=[device, device])
        worker.beat(limit=4, devices=[m.DeviceLoad("cuda:0", "ready", capacity=2)] * 2)
        worker.name = name
    client.request(1)
    client.request(2)
    assert [len(worker.work()) for worker in (first, second)] == [1, 1]

    snapshot = stage.broker.snapshot(stage.now)
    told = [event for event in snapshot.events if event.kind == "same_name"]
    assert [(event.subject, event.level) for event in told] == [("gpu-box", "warning")]
    assert "2 nodes" in told[0].text

    samples = [sample for family in of_fleet(snapshot) for sample in family.samples]
    up = {sample.labels["node"] for sample in samples if sample.name == "zmqrt_worker_up"}
    assert up == {f"gpu-box@{one.worker_uuid[:8]}" for one in snapshot.nodes}
    assert sum(sample.value for sample in samples if sample.name == "zmqrt_worker_requests_in_flight") == 2
    devices = [tuple(sample.labels.values()) for sample in samples if sample.name == "zmqrt_batch_size"]
    assert len(devices) == len(set(devices)) == 4


def test_a_node_that_was_started_again_is_no_second_one() -> None:
    """The one before is lost: its name is free, and its successor has the old series."""
    stage = Stage()
    before, after = Worker(stage, "before", "", 4), Worker(stage, "after", "", 4)
    before.name = after.name = "gpu-box"
    before.register()
    stage.gone(before)
    after.register()

    snapshot = stage.broker.snapshot(stage.now)
    assert [event.kind for event in snapshot.events if event.kind == "same_name"] == []
    samples = [sample for family in of_fleet(snapshot) for sample in family.samples]
    assert {one.labels["node"] for one in samples if one.name == "zmqrt_worker_up"} == {"gpu-box"}
