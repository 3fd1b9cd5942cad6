"""QUERY: what the broker tells about itself and its fleet."""

from __future__ import annotations

from support.stage import Client, Stage, ask, offer
from zmqrt.protocol import messages as m
from zmqrt.protocol import snapshot as s


def query(stage: Stage, what: str = "status") -> s.Snapshot:
    """Ask as a client does."""
    return status(stage.client(), what)


def status(client: Client, what: str = "status") -> s.Snapshot:
    """Ask as this client."""
    client.send(m.Query(5, what))
    (answer,) = client.hear_only(m.Status)
    assert (answer.qid, answer.schema, answer.version) == (5, s.SCHEMA, s.SCHEMA_VERSION)
    return s.decode(answer.body)


def test_status_shows_nodes_devices_and_services() -> None:
    """Health, load and capacity of each, from the broker's own count."""
    stage = Stage()
    device = m.DeviceInfo("cuda:0", "cuda", "Example", 80 << 30)
    client = stage.client()
    worker = stage.worker("node-1", capacity=4, credit=2, devices=[device])
    worker.beat(devices=[m.DeviceLoad("cuda:0", "ready", 100, 4200, capacity=4, running=2, kv_percent=30)])
    client.send(*(ask(n) for n in range(3)))

    shown = query(stage)

    (node,), (service,) = shown.nodes, shown.services
    assert (node.node_id, node.health, node.phase, node.capacity, node.in_flight) == ("node-1", "active", "ready", 4, 2)
    assert node.load == 0.5
    (shown_device,) = node.devices
    assert (shown_device.name, shown_device.phase, shown_device.elapsed_s) == ("Example", "ready", 4.2)
    assert (service.service, service.nodes, service.capacity, service.queued, service.running) == ("toy", 1, 4, 1, 2)
    assert (shown.ready, shown.clients, shown.queued, shown.running) == (True, 2, 1, 2)
    assert shown.counters["requests"] == 3


def test_what_a_device_has_to_do_without_is_shown() -> None:
    """In its own words, without what would move a cursor."""
    stage = Stage()
    worker = stage.worker(devices=[m.DeviceInfo("d", "cuda")])
    worker.beat(devices=[m.DeviceLoad("d", "ready", fallback="no graphs:\x1b[2J off by 3")])

    (device,) = query(stage).nodes[0].devices
    assert "no graphs:" in device.fallback
    assert "\x1b" not in device.fallback


def test_a_node_that_loads_is_shown_and_the_broker_is_not_ready() -> None:
    """Its devices are those of READY until it tells more."""
    stage = Stage()
    worker = stage.worker(devices=[m.DeviceInfo("d", "mock")], credit=0)
    worker.beat(phase="loading", percent=60, elapsed_ms=1500)

    shown = query(stage)

    (node,) = shown.nodes
    assert (node.phase, node.percent, node.elapsed_s) == ("loading", 60, 1.5)
    assert [(d.id, d.phase) for d in node.devices] == [("d", "starting")]
    assert (shown.ready, shown.services[0].nodes) == (False, 0)


def test_services_are_told_without_the_nodes() -> None:
    """A client that picks a model needs no more."""
    stage = Stage()
    stage.worker(services=[offer("a"), offer("b")])

    shown = query(stage, "services")

    assert [one.service for one in shown.services] == ["a", "b"]
    assert shown.nodes == []


def test_an_unknown_question_is_answered_as_such() -> None:
    """Nobody waits for ever."""
    stage = Stage()
    client = stage.client()

    client.send(m.Query(6, "weather"))

    (status,) = client.hear_only(m.Status)
    assert (status.qid, status.schema, status.body) == (6, "unknown", b"")


def test_many_who_ask_at_once_cost_one_snapshot() -> None:
    """It is kept for a tenth of a second."""
    stage = Stage()
    client = stage.client()

    client.send(m.Query(1, "status"), m.Query(2, "status"))
    first, second = client.hear_only(m.Status)
    stage.pass_time(0.2)
    client.send(m.Query(3, "status"))
    (third,) = client.hear_only(m.Status)

    assert first.body == second.body
    assert s.decode(third.body).uptime_s > s.decode(first.body).uptime_s


def test_who_asks_too_often_is_told_when_to_ask_again() -> None:
    """And muted only if it does not keep to that."""
    stage = Stage()
    client = stage.client()

    client.send(*(m.Query(number, "services") for number in range(150)))
    answers = client.hear_only(m.Status)

    assert [one.schema for one in answers] == ["snapshot"] * 100 + [s.LATER] * 50
    assert answers[-1].ext == {"retry_after_ms": 200}
    assert stage.broker.counters.strikes == 0
    client.send(*(m.Query(number, "services") for number in range(100)))
    assert stage.broker.counters.strikes == 1


def test_requests_of_others_are_told_to_admins_alone() -> None:
    """Also when the answer for an admin is at hand already."""
    stage = Stage(is_admin=lambda user: user == "boss")
    stage.worker(services=[offer()])
    client, boss = stage.client(user="anna"), stage.client(user="boss")
    client.send(ask(1, ext={"request_id": "secret-job"}))

    assert [one.request_id for one in status(boss).requests] == ["secret-job"]
    assert status(client).requests == []


def test_failures_of_others_are_told_to_admins_alone() -> None:
    """Neither the names of requests nor what their model said."""
    stage = Stage(is_admin=lambda user: user == "boss")
    worker = stage.worker()
    client, boss = stage.client(user="anna"), stage.client(user="boss")
    client.send(ask(1, ext={"request_id": "secret-job"}))
    worker.error(worker.work()[0].lease, 500, "model_raised", "secret words")
    client.hear()
    stage.pass_time(0.2)

    assert [event.kind for event in status(client).events] == ["joined", "ready"]
    assert [event.request_id for event in status(boss).events] == ["", "", "secret-job"]
