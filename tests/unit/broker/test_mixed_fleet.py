"""Nodes of one service that can do different things: each request goes where it can be served, and holds up nobody."""

from __future__ import annotations

import msgspec
import pytest

from support.stage import STREAM, Client, Stage, Worker, ask, offer, rid_of
from zmqrt.protocol import messages as m

PLAIN = offer(can=[])
SKILLED = offer(can=["logprobs", "token_ids", "tools"])
LOGPROBS: m.Ext = {"needs": "logprobs"}


def refused(client: Client) -> list[tuple[int, str]]:
    """Return code and words of what ended badly."""
    return [(one.code, one.text) for one in client.hear_only(m.Error)]


def test_requests_go_where_they_can_be_served() -> None:
    """Those that need something to the node that can do it, the others to both."""
    stage = Stage()
    client = stage.client()
    plain, skilled = stage.worker(services=[PLAIN], capacity=50), stage.worker(services=[SKILLED], capacity=50)
    client.send(*(ask(n, ext=LOGPROBS if n % 2 else {}) for n in range(40)))

    done_plain, done_skilled = plain.work(), skilled.work()

    assert len(done_plain) + len(done_skilled) == 40
    assert not any(job.ext for job in done_plain)
    assert sum(not job.ext for job in done_skilled) > 1 or len(done_plain) == 20
    assert sum(job.ext == LOGPROBS for job in done_skilled) == 20


def test_a_node_from_before_gets_what_nodes_did_before_and_nothing_new() -> None:
    """Its offer has no such field."""
    _stage, client, old = Stage().with_peers(services=[offer()])
    client.send(ask(1, ext={"needs": "logprobs,token_ids"}), ask(2, ext={"needs": "tools"}))

    assert [job.rid for job in old.work()] == [rid_of(1)]
    ((code, words),) = refused(client)
    assert code == 400
    assert words.startswith("tools: no node of 'toy' can do this")


def test_what_waits_for_its_node_holds_up_nobody() -> None:
    """Neither those behind it, nor by filling the queue: a node is free for them."""
    stage = Stage(in_flight=5)
    client, other = stage.client(), stage.client()
    plain, skilled = stage.worker(services=[PLAIN], capacity=30), stage.worker(services=[SKILLED], capacity=1)
    third = stage.worker(services=[offer(can=["logprobs"])], capacity=30)
    for number in range(40):
        client.request(number, ext={"needs": "tools"})
    assert len(skilled.work()) == 1
    assert {code for code, _ in refused(client)} == {429}

    client.send(ask(100), ask(101))
    other.request(102)
    client.request(103, ext=LOGPROBS)

    assert {job.rid for node in (plain, third) for job in node.work()} == set(map(rid_of, range(100, 104)))
    assert skilled.work() == []
    assert refused(client) == refused(other) == []


def test_those_who_wait_for_a_node_take_turns_there() -> None:
    """By priority, and each connection in turn, as in any queue; their node is given none of the others meanwhile."""
    stage = Stage()
    greedy, modest = stage.client(), stage.client()
    stage.worker(services=[PLAIN], capacity=30)
    skilled = stage.worker(services=[SKILLED], capacity=1)
    greedy.send(*(ask(n, ext=LOGPROBS) for n in range(1, 6)))
    modest.send(ask(10, ext=LOGPROBS), ask(11, ext=LOGPROBS, prio=-5))
    (job,) = skilled.work()

    order = [job.rid]
    for _ in range(6):
        skilled.final(job.lease)
        (job,) = skilled.work()
        order.append(job.rid)

    assert order == [rid_of(n) for n in (1, 2, 10, 3, 4, 5, 11)]


def test_what_no_node_can_do_is_refused_before_it_is_queued() -> None:
    """Also while all are busy; it names what is missing, and what there is."""
    stage, client, _ = Stage().with_peers(services=[SKILLED], capacity=1)
    stage.worker(services=[PLAIN], capacity=1)
    client.send(ask(1), ask(2), ask(3))
    queued = stage.broker.state.services["toy"].queue.count

    client.request(9, ext={"needs": "logprobs,vision"})

    assert refused(client) == [(400, "vision: no node of 'toy' can do this; they can do: logprobs, token_ids, tools")]
    assert stage.broker.state.services["toy"].queue.count == queued == 1
    assert stage.counters.rejected_bad == 1


def test_what_no_one_node_can_do_together_is_refused() -> None:
    """Half of it here and half of it there is no help."""
    stage, client, _ = Stage().with_peers(services=[offer(can=["tools"])])
    stage.worker(services=[offer(can=["vision"])])

    client.request(1, ext={"needs": "vision,tools"})

    assert refused(client)[0][1].startswith("tools, vision: no node of 'toy' can do this")


def test_names_of_a_stranger_are_harmless() -> None:
    """They come back in the words of the error."""
    _stage, client, _ = Stage().with_peers(services=[PLAIN])

    client.request(1, ext={"needs": "\x1b[2J" + "x" * 250})

    ((code, words),) = refused(client)
    assert code == 400
    assert words.isprintable()


def test_what_waited_for_any_node_at_all_is_refused_by_the_first_that_cannot() -> None:
    """A broker that has just started knows no node yet; nobody waits longer than until one is known."""
    stage = Stage()
    client = stage.client()
    client.send(ask(1, ext=LOGPROBS), ask(2))

    worker = stage.worker(services=[PLAIN])

    assert [job.rid for job in worker.work()] == [rid_of(2)]
    assert [code for code, _ in refused(client)] == [400]


def test_while_a_node_that_can_loads_it_is_worth_asking_again() -> None:
    """503, which clients try again by themselves."""
    stage, client, _ = Stage().with_peers(services=[PLAIN])
    loading = Worker(stage, "late", "", 4)
    loading.register(services=[SKILLED])
    loading.beat(phase="loading", percent=40, elapsed_ms=4000)

    client.request(1, ext=LOGPROBS)

    (error,) = client.hear_only(m.Error)
    assert (error.code, error.reason, error.retryable, error.retry_after_ms) == (503, "starting", True, 6000)
    assert error.text == "logprobs: the node of 'toy' that could do this is not ready: loading"


def test_a_node_that_was_lost_a_moment_ago_is_waited_for() -> None:
    """It comes back within seconds as a rule; a 400 would be final."""
    stage = Stage()
    client, plain = stage.client(), stage.worker(services=[PLAIN])
    skilled = stage.worker(services=[SKILLED])
    stage.gone(skilled)
    client.request(1, ext=LOGPROBS, ttl_s=300.0)
    client.request(2)
    assert [job.rid for job in plain.work()] == [rid_of(2)]
    stage.stay_alive(3, client, plain)

    again = stage.worker(services=[SKILLED])

    assert [job.rid for job in again.work()] == [rid_of(1)]


def test_a_node_that_can_something_else_each_moment_is_not_remembered_for_all_of_it() -> None:
    """Names are a peer's to choose, for a thousand services at a time; what is there again is no longer gone."""
    stage, _, node = Stage().with_peers(services=[SKILLED])
    for number in range(40):
        stage.now += 1.0
        node.beat(services=[offer(can=[f"trick-{number}"])])
    node.beat(services=[SKILLED])
    node.beat(services=[PLAIN])
    node.beat(services=[SKILLED])

    gone = stage.broker.state.services["toy"].gone

    assert [sorted(supply.can) for supply in gone] == [["trick-38"], ["trick-39"], []]


def test_what_waits_for_a_node_that_does_not_come_back_is_told() -> None:
    """After the eviction time, however much time it has, and whatever the others get done meanwhile."""
    stage = Stage()
    client, plain = stage.client(), stage.worker(services=[PLAIN], capacity=50)
    skilled = stage.worker(services=[SKILLED], capacity=1)
    client.send(*(ask(n, ext=LOGPROBS, ttl_s=300.0) for n in (1, 2)))
    stage.stay_alive(30, client, plain, skilled)
    assert refused(client) == []
    stage.gone(skilled)

    stage.stay_alive(25, client, plain)

    assert [code for code, _ in refused(client)] == [400, 400]
    assert plain.work() == []


def test_what_was_lost_with_its_node_waits_for_one_that_loads_and_does_not_know_yet_what_it_can() -> None:
    """Before its engines are up a node offers no capabilities; what was accepted outlives a load of minutes."""
    stage = Stage()
    client, plain = stage.client(), stage.worker(services=[PLAIN])
    able = stage.worker(services=[offer(can=["extra"])])
    client.request(1, ext={"needs": "extra"}, ttl_s=300.0)
    assert len(able.work()) == 1
    stage.gone(able)
    again = Worker(stage, "again", "", 4)
    again.register(services=[offer(max_inflight=0)])
    again.beat(phase="loading")
    for _ in range(60):
        again.beat(phase="loading")
        stage.stay_alive(1, client, plain)
    assert refused(client) == []

    again.beat(phase="ready", services=[offer(can=["extra"])], limit=4)

    assert [job.rid for job in again.work()] == [rid_of(1)]


def test_a_stream_whose_weights_are_there_and_not_what_it_needs_says_so() -> None:
    """Whoever reads the error would look for the weights, and find them."""
    stage = Stage()
    client, skilled = stage.client(), stage.worker(services=[SKILLED])
    client.request(1, flags=STREAM, ext=LOGPROBS, ttl_s=60.0)
    skilled.partial(skilled.work()[0].lease, 0, 2)
    plain = stage.worker(services=[PLAIN])
    stage.gone(skilled)

    stage.stay_alive(30, client, plain)

    ((code, words),) = refused(client)
    assert code == 502
    assert words == "no node with the weights that began this stream can do what it needs: logprobs"


def test_after_the_last_of_those_who_waited_for_a_node_nobody_seems_to_wait() -> None:
    """Whether it was served or has left: else the next request would stand in line behind nobody."""
    stage = Stage()
    client = stage.client()
    plain, skilled = stage.worker(services=[PLAIN], capacity=1), stage.worker(services=[SKILLED], capacity=1)
    client.send(ask(1, ext=LOGPROBS), ask(2, ext=LOGPROBS), ask(3))
    (other,) = plain.work()
    for _ in range(2):
        skilled.final(skilled.work()[0].lease)
    plain.final(other.lease)
    client.send(ask(4, ext=LOGPROBS), ask(5, ext=LOGPROBS))
    client.send(m.Cancel(rid_of(5)))
    skilled.final(skilled.work()[0].lease)

    assert stage.broker.state.services["toy"].queue.due == 0


def test_a_stream_that_needs_something_goes_on_where_that_can_be_done() -> None:
    """With the same weights there as elsewhere; the free node of them cannot do it."""
    stage = Stage()
    client, first = stage.client(), stage.worker(services=[SKILLED])
    client.request(1, flags=STREAM, ext=LOGPROBS, ttl_s=60.0)
    first.partial(first.work()[0].lease, 0, 2)
    plain, second = stage.worker(services=[PLAIN]), stage.worker(services=[SKILLED])

    stage.gone(first)
    stage.pass_time(1.1)

    assert plain.work() == []
    assert [job.resume_n for job in second.work()] == [2]


def test_a_node_that_learns_something_gets_what_waited_for_it() -> None:
    """Its heartbeat replaces what it offers."""
    stage = Stage()
    client, skilled, plain = (
        stage.client(),
        stage.worker(services=[SKILLED], capacity=1),
        stage.worker(services=[PLAIN]),
    )
    client.send(ask(1, ext=LOGPROBS), ask(2, ext=LOGPROBS))
    assert plain.work() == []

    plain.beat(services=[SKILLED])

    assert [job.rid for job in plain.work()] == [rid_of(2)]
    assert len(skilled.work()) == 1


def test_prompts_that_begin_alike_do_not_lead_to_a_node_that_cannot() -> None:
    """The node that knows the beginning is as free, and still not asked."""
    stage = Stage()
    client, plain = stage.client(), stage.worker(services=[PLAIN], capacity=50)
    client.send(*(ask(n, ext={"prefix": "ab"}) for n in range(3)))
    assert len(plain.work()) == 3
    skilled = stage.worker(services=[SKILLED], capacity=50)

    client.request(9, ext={"prefix": "ab", **LOGPROBS})

    assert [job.rid for job in skilled.work()] == [rid_of(9)]


@pytest.mark.parametrize("can", [None, []])
def test_the_status_tells_what_can_be_done_and_where(can: list[str] | None) -> None:
    """By model with the number of nodes, and by node."""
    stage, client, _ = Stage(is_admin=lambda _: True).with_peers(services=[offer(can=can)])
    stage.worker(services=[SKILLED])
    client.send(m.Query(1, "status"))

    (status,) = client.hear_only(m.Status)
    told = msgspec.msgpack.decode(status.body)

    counts = {"logprobs": 2, "token_ids": 2, "tools": 1} if can is None else {"logprobs": 1, "token_ids": 1, "tools": 1}
    assert told["services"][0]["capabilities"] == counts
    assert max(node["capabilities"] for node in told["nodes"]) == ["logprobs", "token_ids", "tools"]
