"""Whose turn it is: by what each tenant has had, at whichever bridge it asks; and no class starves."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest

from support.stage import STREAM, Client, Stage, Worker, offer
from zmqrt.broker import queues
from zmqrt.broker.queues import PATIENCE
from zmqrt.protocol import messages as m


def busy(**more: Any) -> tuple[Stage, Worker]:
    """Give a broker with one node that runs one request at a time, and has one."""
    stage = Stage(in_flight=4096, outstanding=4096, **more)
    worker = stage.worker(capacity=1, credit=100_000)
    stage.client().request(9_999_999)
    return stage, worker


def follow(worker: Worker, meta: m.Ext | None = None) -> int:
    """Have the node answer what it has; return the number of what it is given next."""
    (lease,) = list(worker.stage.broker.state.nodes[worker.peer].running)
    worker.final(lease, meta=meta)
    return int.from_bytes(worker.work()[-1].rid, "big")


def serve(worker: Worker, times: int) -> list[int]:
    """Answer so many requests one after the other; return the numbers of those that follow."""
    return [follow(worker) for _ in range(times)]


def ask(client: Client, numbers: range, party: str = "", *, cost: int = 0, prio: int = 0) -> None:
    """Send requests for somebody."""
    for number in numbers:
        client.request(
            number, flags=STREAM if cost else m.IDEMPOTENT, cost=cost, prio=prio, ext={"party": party} if party else {}
        )


def test_two_bridges_give_a_tenant_no_second_share() -> None:
    """Each asks for the same tenant, by its name; the other tenant has half of the turns all the same."""
    stage, worker = busy()
    one, two = stage.client(), stage.client()
    ask(one, range(1, 101), "hot")
    ask(two, range(101, 201), "hot")
    ask(one, range(1001, 1011), "calm")

    served = serve(worker, 20)
    assert sum(number > 1000 for number in served) == 10


def test_who_comes_behind_a_flood_is_next() -> None:
    """Whatever waits: a hundred times as much does not keep it waiting for more than what runs."""
    stage, worker = busy()
    bridges = [stage.client(), stage.client()]
    for at in range(400):
        ask(bridges[at % 2], range(at, at + 1), "hot")
    serve(worker, 50)

    waited: list[int] = []
    for number in range(1000, 1040):
        ask(bridges[number % 2], range(number, number + 1), "calm")
        waited.append(serve_until(worker, number))
    assert statistics.fmean(waited) <= 1
    assert max(waited) <= 2


def serve_until(worker: Worker, wanted: int) -> int:
    """Serve until a request has its turn; return how many had theirs before."""
    return next(before for before in range(1000) if follow(worker) == wanted)


def test_turns_are_shared_by_their_cost() -> None:
    """Who asks for ten times as many tokens has a tenth of the turns."""
    stage, worker = busy()
    bridge = stage.client()
    ask(bridge, range(1, 101), "long", cost=1000)
    ask(bridge, range(1001, 1101), "short", cost=100)

    served = serve(worker, 55)
    assert 4 <= sum(number < 1000 for number in served) <= 7


def test_users_of_a_tenant_share_its_turns() -> None:
    """And give it no further ones."""
    stage, worker = busy()
    bridge = stage.client()
    for user in range(5):
        ask(bridge, range(100 * user, 100 * user + 20), f"crowd/{user}")
    ask(bridge, range(1000, 1020), "single/me")

    served = serve(worker, 20)
    assert sum(number >= 1000 for number in served) == 10
    assert sorted(number // 100 for number in served if number < 1000) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_only_a_bridge_speaks_for_others() -> None:
    """Who is none parts what it has among its own: all of that is one tenant's."""
    stage, worker = busy(is_bridge="bridge".__eq__)
    sly, bridge = stage.client(user="sly"), stage.client(user="bridge")
    for party in range(10):
        ask(sly, range(100 * party, 100 * party + 10), f"made-up-{party}")
    ask(bridge, range(1001, 1021), "acme")

    served = serve(worker, 20)
    assert sum(number > 1000 for number in served) == 10


def test_a_bridge_may_ask_for_what_is_urgent() -> None:
    """Its callers' classes are its own business; another client's priority is lowered."""
    stage, worker = busy(is_bridge="bridge".__eq__, is_admin="root".__eq__)
    ask(stage.client(user="plain"), range(1, 3), prio=10)
    ask(stage.client(user="bridge"), range(11, 13), "acme", prio=10)

    assert serve(worker, 4) == [11, 12, 1, 2]


def test_what_was_made_counts_and_not_what_was_feared() -> None:
    """A tenant whose answers turn out short gets its turns back."""
    stage, worker = busy()
    bridge = stage.client()
    ask(bridge, range(1, 51), "modest", cost=1000)
    ask(bridge, range(1001, 1051), "honest", cost=100)
    turns = [follow(worker, {"prompt_tokens": 1, "completion_tokens": 99}) for _ in range(44)]

    assert 18 <= sum(number < 1000 for number in turns) <= 26


def test_no_class_starves() -> None:
    """After so many of higher classes one of a lower has its turn."""
    stage, worker = busy()
    client = stage.client()
    ask(client, range(1, 200), prio=10)
    ask(client, range(1001, 1011), prio=0)
    ask(client, range(2001, 2011), prio=-10)

    served = serve(worker, 6 * (PATIENCE + 2))
    for first in (1001, 2001):
        turns = [at for at, number in enumerate(served) if first <= number < first + 10]
        assert len(turns) >= 5
        assert max(b - a for a, b in itertools.pairwise(turns)) <= 2 * PATIENCE
    assert sum(number < 1000 for number in served) >= 0.85 * len(served) - 2


def test_who_waits_for_another_node_does_not_starve_either() -> None:
    """Its class is lower than that of all others which that node could serve, too."""
    stage = Stage(in_flight=4096, outstanding=4096)
    client = stage.client()
    skilled = stage.worker(services=[offer(can=["logprobs"])], capacity=1, credit=100_000)
    client.request(9001, ext={"needs": "logprobs"})
    plain = stage.worker(services=[offer(can=[])], capacity=1, credit=1)
    client.request(5000, ext={"needs": "logprobs"}, prio=-10)
    ask(client, range(1, 100))
    assert [job.rid for job in plain.work()] == [(1).to_bytes(16, "big")]

    served = serve(skilled, 3 * PATIENCE)
    assert 5000 in served[: PATIENCE + 2]


def test_what_is_remembered_of_tenants_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come and go; nobody is left behind."""
    monkeypatch.setattr(queues, "_MOST_ACCOUNTS", 32)
    stage, worker = busy()
    bridge = stage.client()
    for number in range(200):
        ask(bridge, range(number, number + 1), f"tenant-{number}")
        assert follow(worker) == number

    (service,) = stage.broker.state.services.values()
    assert service.queue.remembered <= 32
