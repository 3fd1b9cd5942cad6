"""Deltas: whoever has an earlier snapshot, and is told what changed, has the newest one."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from support.stage import STREAM, UNARY, Client, Stage, ask, offer
from zmqrt.protocol import delta
from zmqrt.protocol import messages as m
from zmqrt.protocol import snapshot as s


def status(client: Client, known: s.Snapshot | None = None) -> tuple[s.Snapshot, m.Status]:
    """Ask as a monitor does."""
    args: m.Ext = {} if known is None else {"epoch": known.broker_epoch}
    client.send(m.Query(1, "status", args, 0 if known is None else known.serial))
    (answer,) = client.hear_only(m.Status)
    if answer.schema == delta.SCHEMA:
        assert known is not None
        return delta.apply(known, delta.decode(answer.body)), answer
    return s.decode(answer.body), answer


def do(stage: Stage, client: Client, what: str, number: int) -> None:
    """Have something happen in a fleet."""
    workers: dict[int, Any] = stage.__dict__.setdefault("workers", {})
    worker = workers.get(number % 3)
    if what == "join":
        if worker is None:
            device = m.DeviceInfo("d", "mock")
            workers[number % 3] = stage.worker(f"n{number % 3}", capacity=2, devices=[device])
    elif what == "ask":
        client.request(stage.counters.requests + 1, flags=STREAM if number % 2 else UNARY)
    elif what == "wait":
        stage.pass_time(0.3 * number)
    elif worker is None:
        return
    elif what == "beat":
        worker.beat(devices=[m.DeviceLoad("d", "ready", tokens=number)])
    elif what == "lose":
        stage.gone(workers.pop(number % 3))
    else:
        for job in worker.work():
            worker.partial(job.lease, 0, 1, b"x")
            if what == "finish":
                worker.final(job.lease, 1)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["join", "ask", "wait", "beat", "lose", "finish", "begin", "look"]),
            st.integers(min_value=0, max_value=11),
        ),
        max_size=40,
    )
)
def test_applying_deltas_gives_the_whole_state(events: list[tuple[str, int]]) -> None:
    """After any history, however many looks ago the known state is."""
    stage = Stage()
    client, monitor = stage.client("c"), stage.client("m")
    known, _ = status(monitor)
    for what, number in events:
        if what != "look":
            do(stage, client, what, number)
            continue
        stage.pass_time(0.15)
        newest, _ = status(monitor, known)
        whole, _ = status(monitor)
        assert newest == whole
        if number % 2:
            known = newest
    stage.pass_time(0.15)
    assert status(monitor, known)[0] == status(monitor)[0]


def test_a_quiet_fleet_costs_next_to_nothing() -> None:
    """Nodes that only grow older are not told again, nor their devices."""
    stage = Stage()
    monitor = stage.client()
    for number in range(20):
        devices = [m.DeviceInfo(f"d{one}", "mock") for one in range(8)]
        stage.worker(f"n{number}", devices=devices)
    known, first = status(monitor)
    stage.pass_time(1.0)

    newest, answer = status(monitor, known)

    assert answer.schema == delta.SCHEMA
    assert len(answer.body) < len(first.body) / 20
    assert {round(node.heartbeat_age_s - before.heartbeat_age_s, 6) for node, before in _pairs(newest, known)} == {1.0}


def _pairs(newest: s.Snapshot, known: s.Snapshot) -> list[tuple[s.NodeStatus, s.NodeStatus]]:
    return list(zip(newest.nodes, known.nodes, strict=True))


def test_a_state_that_is_too_old_or_of_another_broker_is_told_whole() -> None:
    """The epoch tells one broker process from the next: both count from 1."""
    stage = Stage()
    monitor = stage.client()
    stage.worker()
    known, _ = status(monitor)
    stage.pass_time(1.0)

    monitor.send(m.Query(1, "status", {"epoch": known.broker_epoch + 1}, known.serial))
    monitor.send(m.Query(2, "status", {"epoch": known.broker_epoch}, 999))
    monitor.send(m.Query(3, "status", {}, known.serial))

    assert [one.schema for one in monitor.hear_only(m.Status)] == [s.SCHEMA] * 3


def test_many_different_states_cost_no_more_than_a_few_deltas() -> None:
    """Beyond them the whole one is sent, which is there already."""
    stage = Stage()
    stage.worker()
    monitor = stage.client()
    known: list[s.Snapshot] = []
    for _ in range(30):
        known.append(status(monitor)[0])
        stage.pass_time(0.2)
    for one in known:
        monitor.send(m.Query(1, "status", {"epoch": one.broker_epoch}, one.serial))
        stage.now += 0.001

    schemas = [one.schema for one in monitor.hear_only(m.Status)]
    assert 0 < schemas.count(delta.SCHEMA) < 10
    assert len(schemas) == 30


def test_a_list_of_models_is_no_state_to_go_on_from() -> None:
    """It has no nodes: whoever took its serial for one would never hear of them."""
    stage = Stage()
    stage.worker()
    monitor = stage.client()
    monitor.send(m.Query(1, "services"))
    (answer,) = monitor.hear_only(m.Status)

    assert s.decode(answer.body).serial == 0


def test_requests_of_others_are_told_to_admins_alone() -> None:
    """Also when the answer for an admin is at hand already."""
    stage = Stage(is_admin=lambda user: user == "boss")
    stage.worker(services=[offer()])
    client, boss = stage.client(user="anna"), stage.client(user="boss")
    client.send(ask(1, ext={"request_id": "secret-job"}))

    assert [one.request_id for one in status(boss)[0].requests] == ["secret-job"]
    assert status(client)[0].requests == []


def test_failures_of_others_are_told_to_admins_alone() -> None:
    """Whole and as a change: neither the names of requests nor what their model said."""
    stage = Stage(is_admin=lambda user: user == "boss")
    worker = stage.worker()
    client, boss = stage.client(user="anna"), stage.client(user="boss")
    known, _ = status(client)
    client.send(ask(1, ext={"request_id": "secret-job"}))
    worker.error(worker.work()[0].lease, 500, "model_raised", "secret words")
    client.hear()
    stage.pass_time(0.2)

    for seen in (status(client)[0], status(client, known)[0]):
        assert [event.kind for event in seen.events] == ["joined", "ready"]
    assert [event.request_id for event in status(boss)[0].events] == ["", "", "secret-job"]
