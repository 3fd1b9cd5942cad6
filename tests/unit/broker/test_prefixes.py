"""Which node gets a prompt that begins like one before: the one that had it, while it is about as free as others."""

from __future__ import annotations

import pytest

from support.offers import make_node
from support.stage import Client, Stage, Worker, ask
from zmqrt.broker import placement
from zmqrt.broker.requests import Request
from zmqrt.broker.services import Service
from zmqrt.protocol import messages as m

HINT = "aa,bb,cc"


def stage_with(count: int, capacity: int) -> tuple[Stage, Client, list[Worker]]:
    """Make a broker with nodes that are ready."""
    stage = Stage()
    client = stage.client()
    return stage, client, [stage.worker(f"w{number}", capacity=capacity) for number in range(count)]


def who(workers: list[Worker]) -> tuple[Worker, m.Dispatch]:
    """Return the node that was just given a request."""
    (found,) = [(worker, given) for worker in workers for given in worker.work()]
    return found


def test_the_turns_of_a_conversation_go_to_the_node_that_knows_it() -> None:
    """Although others have waited longer; a conversation of its own goes elsewhere."""
    _, client, workers = stage_with(4, 8)
    client.send(ask(0, ext={"prefix": HINT}))
    first, given = who(workers)
    first.final(given.lease)

    for number in range(1, 6):
        client.send(ask(number, ext={"prefix": f"{HINT},deeper"}))
        worker, given = who(workers)
        assert worker is first
        worker.final(given.lease)
        client.send(ask(100 + number, ext={"prefix": f"other {number}"}))
        worker, given = who(workers)
        assert worker is not first
        worker.final(given.lease)


def test_a_beginning_that_all_share_makes_no_hot_spot() -> None:
    """Of nodes that hold 20, none is ever two requests ahead."""
    _, client, workers = stage_with(4, 20)
    counts = dict.fromkeys(workers, 0)

    for number in range(80):
        client.send(ask(number, ext={"prefix": "system prompt"}))
        worker, _ = who(workers)
        counts[worker] += 1
        assert max(counts.values()) - min(counts.values()) <= 2
    assert set(counts.values()) == {20}


@pytest.mark.parametrize(("busy", "is_taken"), [(0, True), (1, True), (2, False), (5, False)])
def test_loads_may_differ_by_less_than_a_tenth(busy: int, *, is_taken: bool) -> None:
    """Of 20 places one is five hundredths, two are ten."""
    _, client, workers = stage_with(2, 20)
    client.send(ask(0, ext={"prefix": HINT}))
    first, given = who(workers)
    first.final(given.lease)
    others: list[tuple[Worker, m.Dispatch]] = []
    for number in range(1, 2 * busy + 1):  # they go to both by turns
        client.send(ask(number))
        others.append(who(workers))
    for worker, given in others:
        if worker is not first:
            worker.final(given.lease)

    client.send(ask(50, ext={"prefix": HINT}))

    assert (who(workers)[0] is first) == is_taken


def test_a_node_that_is_full_or_gone_is_not_waited_for() -> None:
    """The tables are looked at after each step: what is remembered of a node goes with it."""
    stage, client, workers = stage_with(2, 1)
    client.send(ask(0, ext={"prefix": HINT}))
    first, given = who(workers)
    client.send(ask(1, ext={"prefix": HINT}))
    second, later = who(workers)
    assert second is not first
    second.final(later.lease)

    stage.gone(second)
    stage.pass_time(5.0)
    first.beat()
    first.final(given.lease)
    client.send(ask(2, ext={"prefix": HINT}))

    assert who(workers)[0] is first


@pytest.mark.parametrize("hint", ["", ",", "," * 200, "x" * 256, 7, True, None])
def test_an_odd_hint_does_no_harm(hint: str | int | bool | None) -> None:  # noqa: FBT001 - what a peer may send
    """It is a hint."""
    _, client, workers = stage_with(2, 4)

    client.send(ask(0, ext={"prefix": hint}))

    who(workers)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one used longest ago goes first."""
    monkeypatch.setattr(placement, "_MOST_KNOWN", 10)
    service: Service[Request] = Service("s")
    known, freest = (make_node(service).offers["s"] for _ in range(2))
    for offer in (known, freest):
        service.load_index.put(offer, 0)
    for number in range(9):
        service.prefixes.choose(f"p{number}", known)

    assert service.prefixes.choose("p0", freest) is known
    service.prefixes.choose("q0,q1", known)

    assert len(service.prefixes) == 10
    assert service.prefixes.choose("p0", freest) is known
    assert service.prefixes.choose("p1", freest) is freest
