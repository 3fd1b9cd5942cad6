"""Room for others: whoever fills a queue is told to come later, and nobody else is."""

from __future__ import annotations

from typing import Any

import pytest

from support.stage import Client, Stage, Worker
from zmqrt.protocol import messages as m


def full_house(**more: Any) -> tuple[Stage, Worker]:
    """Give a broker with one node that has just taken what it can."""
    stage = Stage(in_flight=100, outstanding=4096, **more)
    worker = stage.worker(capacity=4)
    return stage, worker


def refused(client: Client) -> list[str]:
    """Return the reasons of what was refused."""
    return [one.reason for one in client.hear_only(m.Error)]


def test_one_clients_flood_leaves_room_for_the_next_client() -> None:
    """Of the same key, too: without keys everybody has the same."""
    stage, _ = full_house()
    greedy, other = stage.client(), stage.client()
    for number in range(300):
        greedy.request(number)
    assert refused(greedy) == ["queue_full"] * 196

    other.request(1000)
    assert refused(other) == []
    greedy.request(301)
    assert refused(greedy) == ["queue_full"]


def test_one_tenants_flood_leaves_room_for_the_next_tenant() -> None:
    """A bridge has one connection for all of them, and says for whom it asks."""
    stage, worker = full_house()
    bridge = stage.client()
    for number in range(230):
        bridge.request(number, ext={"party": "a"})
    assert set(refused(bridge)) == {"queue_full"}

    bridge.request(1000, ext={"party": "b"})
    assert refused(bridge) == []
    worker.final(worker.work()[0].lease)
    worker.final(stage.broker.state.nodes[worker.peer].running.copy().popitem()[0])
    jobs = {job.ext.get("party") for job in worker.work()}
    assert "b" in jobs  # and its turn comes at once


def test_many_connections_of_one_key_leave_room_for_the_next_key() -> None:
    """However many it opens."""
    stage, _ = full_house()
    greedy = [stage.client(user="greedy") for _ in range(40)]
    for each, client in enumerate(greedy):
        for number in range(20):
            client.request(1000 * each + number)
    assert set(refused(greedy[-1])) == {"queue_full"}
    queued = stage.broker.snapshot(stage.now).queued
    assert queued == 150

    other = stage.client(user="other")
    other.request(1)
    assert refused(other) == []


def test_all_of_it_is_bounded() -> None:
    """Newcomers without end do not make the queue grow without end."""
    stage, _ = full_house()
    for number in range(600):
        stage.client(user=f"user-{number}").request(number)
    assert stage.broker.snapshot(stage.now).queued == 200


def test_room_in_bytes_is_kept_the_same_way() -> None:
    """One client's long prompts are not everybody's."""
    stage, _ = full_house(queue_bytes=10_000)
    greedy, other = stage.client(), stage.client()
    for number in range(20):
        greedy.request(number, body=b"x" * 1000)
    assert "queue_full" in refused(greedy)

    other.request(100, body=b"x" * 1000)
    assert refused(other) == []


@pytest.mark.parametrize(("user", "order"), [("plain", [1, 2, 3]), ("boss", [3, 1, 2])])
def test_a_priority_above_the_bound_is_for_admins(user: str, order: list[int]) -> None:
    """A plain key's is lowered; its request is served all the same."""
    stage = Stage(is_admin=lambda name: name == "boss")
    worker = stage.worker(capacity=1, credit=100)
    client = stage.client(user=user)
    client.request(0)
    (job,) = worker.work()
    for number in (1, 2):
        client.request(number)
    client.request(3, prio=100)

    served: list[int] = []
    for _ in range(3):
        worker.final(job.lease)
        (job,) = worker.work()
        served.append(int.from_bytes(job.rid, "big"))

    assert served == order


def test_the_bound_of_priorities_is_a_setting() -> None:
    """Up to it everybody may; below nought everybody may, too."""
    stage = Stage(is_admin=lambda _: False, is_bridge=lambda _: False, priority=5)
    worker = stage.worker(capacity=1, credit=100)
    client = stage.client()
    client.request(0)
    (job,) = worker.work()
    client.request(1, prio=-1)
    client.request(2, prio=0)
    client.request(3, prio=5)
    client.request(4, prio=100)

    served: list[int] = []
    for _ in range(4):
        worker.final(job.lease)
        (job,) = worker.work()
        served.append(int.from_bytes(job.rid, "big"))
    assert served == [3, 4, 2, 1]
