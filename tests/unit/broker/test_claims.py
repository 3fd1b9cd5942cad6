"""What workers and clients claim of themselves: counts are bounded by what was sent, credit is earned by answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from support.stage import STREAM, UNARY, Client, Stage, Worker, ask, offer, rid_of
from zmqrt.broker.nodes import UNPROVEN
from zmqrt.protocol import messages as m
from zmqrt.protocol.limits import MAX_HELD

HUGE = [2**31, 2**62, 2**63 - 1]


@pytest.mark.parametrize("units", HUGE)
@pytest.mark.parametrize("flags", [STREAM, UNARY | m.RESUMABLE])
def test_units_take_a_byte_each(flags: int, units: int) -> None:
    """Who counts more than it sends loses the attempt, and another node goes on with it."""
    stage = Stage()
    client, liar = stage.client(), stage.worker("liar")
    client.request(1, flags=flags)
    (job,) = liar.work()
    honest = stage.worker("honest")
    liar.partial(job.lease, 0, units, b"some")

    (again,) = honest.work()
    honest.partial(again.lease, 0, 2)
    honest.final(again.lease, 2)

    (final,) = client.hear_only(m.Final)
    assert final.total_n == 2


@pytest.mark.parametrize("units", HUGE)
def test_so_does_the_total_of_a_whole_answer(units: int) -> None:
    """It goes to stories, histograms and the client."""
    stage = Stage()
    client, liar = stage.client(), stage.worker("liar")
    client.request(1)
    honest = stage.worker("honest")
    liar.final(liar.work()[0].lease, units)

    honest.final(honest.work()[0].lease, 3)
    assert [one.total_n for one in client.hear_only(m.Final)] == [3]


def test_what_a_client_says_it_has_takes_a_byte_each() -> None:
    """And an array does not have more elements than bytes."""
    _, client, worker = Stage().with_peers()
    flags = STREAM | m.RESUME
    client.request(1, flags=flags, resume_n=2**63 - 1, resume=b"\x91\xc0")
    client.request(2, flags=flags, resume_n=3, resume=b"\xdd\xff\xff\xff\xff\xc0")

    assert [one.code for one in client.hear_only(m.Error)] == [400, 400]
    assert worker.work() == []


def test_tokens_are_counted_as_far_as_a_node_can_see() -> None:
    """Its context bounds prompt and answer; without one there is a bound all the same."""
    stage = Stage()
    client, worker = stage.client(), stage.worker()  # a context of 128
    for number, generated in enumerate([100, 129, 2**40, -1]):
        client.request(number)
        (job,) = worker.work()
        meta: m.Ext = {"finish_reason": "stop", "prompt_tokens": 5, "completion_tokens": generated}
        worker.limit += 1
        worker.send(m.WorkerFinal(worker.epoch, job.lease, 0, worker.limit, meta, b"body"))

    (service,) = stage.broker.snapshot(stage.now).services
    assert (service.prompt_tokens, service.generated_tokens) == (5, 100)


def test_a_capacity_beyond_all_measure_is_cut() -> None:
    """In what is dispatched and in what is shown."""
    stage = Stage()
    worker = stage.worker(capacity=2**31, credit=2**62, services=[offer(max_inflight=2**32 - 1)])
    shown = stage.broker.snapshot(stage.now)
    assert (shown.nodes[0].capacity, shown.services[0].capacity) == (MAX_HELD, MAX_HELD)
    worker.beat(devices=[m.DeviceLoad("d", "ready", capacity=2**32 - 1)])
    assert stage.broker.snapshot(stage.now).nodes[0].capacity == MAX_HELD


# --- nodes that answer nothing ---------------------------------------------------------------------------------------


class Pair:
    """A node that answers at once, one that never does, and a client that asks."""

    def __init__(self, *, first: str = "honest") -> None:
        self.stage = Stage(in_flight=1000, outstanding=1000)
        names = ["honest", "liar"] if first == "honest" else ["liar", "honest"]
        made: dict[str, Worker] = {}
        for name in names:
            capacity = 2**31 if name == "liar" else 8
            made[name] = self.stage.worker(name, capacity=capacity, credit=2**40)
        self.honest, self.liar = made["honest"], made["liar"]
        self.client: Client = self.stage.client()
        self.asked = 0
        self.answered: dict[bytes, float] = {}
        self.failed: list[m.Error] = []
        self.taken = 0

    def ask(self, count: int = 1, **more: Any) -> None:
        """Send requests."""
        for _ in range(count):
            self.asked += 1
            self.client.send(ask(self.asked, ttl_s=more.get("ttl_s", 20.0), flags=more.get("flags", STREAM)))

    def turn(self, seconds: float) -> None:
        """Let time pass: the honest node answers what it has, the other one only gives signs of life."""
        for _ in range(round(seconds * 10)):
            self.stage.pass_time(0.1)
            for job in self.honest.work():
                self.honest.partial(job.lease, 0)
                self.honest.final(job.lease, 1)
            self.taken += len(self.liar.work())
            if round(self.stage.now * 10) % 20 == 0:
                self.honest.beat()
                self.liar.beat()
            self.client.send(m.Ping(1))
            for said in self.client.hear():
                if isinstance(said, m.Final):
                    self.answered[said.rid] = self.stage.now
                elif isinstance(said, m.Error):
                    self.failed.append(said)


def test_what_a_silent_node_keeps_goes_elsewhere_before_its_time_is_up() -> None:
    """Every request is answered, though the silent node looks like the freest of all."""
    pair = Pair()
    for _ in range(30):
        pair.ask(4)
        pair.turn(1.0)
    pair.turn(20.0)

    assert pair.failed == []
    assert len(pair.answered) == 120
    redispatches = pair.stage.broker.snapshot(pair.stage.now).tallies["redispatches"]
    assert redispatches["node_mute"] == pair.taken


def test_a_silent_node_gets_less_and_less_and_then_nothing() -> None:
    """One request now and then is its new chance."""
    pair = Pair()
    taken: list[int] = []
    for _ in range(6):
        before = pair.taken
        for _ in range(20):
            pair.ask(2)
            pair.turn(1.0)
        taken.append(pair.taken - before)

    assert taken[0] <= UNPROVEN
    assert max(taken[1:]) <= 3
    assert sum(taken[3:]) <= 3
    assert pair.failed == []


def test_a_silent_node_that_answers_again_has_its_place_back() -> None:
    """Its chance is one request; the answer to it is the beginning of trust."""
    pair = Pair()
    pair.ask(8)
    pair.turn(20.0)
    assert pair.taken
    pair.liar.hear()
    pair.honest.send(m.Draining(pair.honest.epoch))
    pair.ask(2, ttl_s=60.0)
    pair.stage.stay_alive(20, pair.liar)
    chance = pair.liar.work()
    assert len(chance) == 1
    pair.liar.partial(chance[0].lease, 0)

    assert len(pair.liar.work()) == 1
    kinds = [event.kind for event in pair.stage.broker.snapshot(pair.stage.now).events if event.subject == "liar"]
    assert kinds.count("recovered") == 1


def test_a_claim_without_an_answer_is_worth_so_much() -> None:
    """Even before anybody can know that nothing will come."""
    pair = Pair(first="liar")
    pair.ask(2 * UNPROVEN)
    assert len(pair.liar.work()) == UNPROVEN


def test_trust_grows_with_each_answer() -> None:
    """A node of any size is at its full capacity after a few rounds."""
    big = Stage(in_flight=10_000, outstanding=2000, queue_requests=2000)
    stage, client, worker = big.with_peers(capacity=1000, credit=5000)
    client.send(*(ask(number) for number in range(1000)))
    rounds, running = 0, 0
    while running < 900 and rounds < 20:
        for job in worker.work():
            worker.partial(job.lease, 0)
        running = stage.broker.snapshot(stage.now).running
        rounds += 1

    assert rounds <= 5


def test_a_node_that_is_slow_like_all_others_is_not_taken_for_silent() -> None:
    """Where an answer takes most of its time, waiting is all there is to do."""
    stage = Stage()
    client = stage.client()
    nodes = [stage.worker(f"n{number}") for number in range(2)]
    for number in range(6):
        client.request(number, ttl_s=20.0)
        stage.stay_alive(13, *nodes)
        for node in nodes:
            for job in node.work():
                node.final(job.lease)
        client.send(m.Ping(1))

    assert stage.counters.redispatches == 0
    assert stage.counters.completed == 6


def test_a_node_that_says_it_computes_has_longer() -> None:
    """A long prompt among short ones."""
    stage = Stage()
    client = stage.client()
    slow, other = stage.worker("slow"), stage.worker("other")
    for number in range(4):
        client.request(number, ttl_s=20.0)
        for node in (slow, other):
            for job in node.work():
                node.final(job.lease)
    client.request(9, ttl_s=20.0)
    holder = slow if (jobs := slow.work()) else other
    jobs = jobs or other.work()
    for step in range(12):
        for node in (slow, other):
            node.beat(devices=[m.DeviceLoad("d", "ready", capacity=4, steps=step if node is holder else 0)])
        stage.pass_time(1.0)
    holder.final(jobs[0].lease)

    assert stage.counters.redispatches == 0
    assert rid_of(9) in [one.rid for one in client.hear_only(m.Final)]


def test_a_silent_node_makes_no_promise_for_the_queue() -> None:
    """When to come again follows from nodes that answer, whatever another one claims."""
    pair = Pair()
    pair.ask(8)
    pair.turn(7.0)
    (service,) = pair.stage.broker.state.services.values()
    shares = [node.most for node in service.offers]
    service.mean_s = 8.0

    assert min(shares) == 0
    assert service.retry_after_s() == 1.0  # one more at eight places


def answer_all(stage: Stage, client: Client, nodes: list[Worker]) -> None:
    """Let it be known how fast the service usually is."""
    for number in range(6):
        client.request(100 + number, ttl_s=30.0)
        stage.pass_time(0.1)
        for node in nodes:
            for job in node.work():
                node.final(job.lease)


def test_a_node_whose_service_has_never_answered_is_not_taken_for_silent() -> None:
    """An engine that needs most of the time for each answer would never give one, if each began anew elsewhere."""
    stage = Stage()
    client = stage.client()
    nodes = [stage.worker(f"n{number}") for number in range(2)]
    client.request(1, ttl_s=30.0)
    stage.stay_alive(28, *nodes, client)
    ((node, job),) = [(node, job) for node in nodes for job in node.work()]
    node.final(job.lease)

    assert stage.counters.redispatches == 0
    assert len(client.hear_only(m.Final)) == 1


@pytest.mark.parametrize("more", [{"body": b"x" * 1000}, {"cost": 1000}])
def test_what_asks_for_more_than_usual_may_take_longer(more: dict[str, Any]) -> None:
    """A hundred texts to embed among single ones, or a long whole answer: its node says nothing until it is done."""
    stage = Stage()
    client = stage.client()
    nodes = [stage.worker(f"n{number}") for number in range(2)]
    answer_all(stage, client, nodes)
    client.request(1, ttl_s=30.0, **more)
    stage.stay_alive(28, *nodes, client)
    ((node, job),) = [(node, job) for node in nodes for job in node.work()]
    node.final(job.lease)

    assert stage.counters.redispatches == 0
    assert rid_of(1) in [one.rid for one in client.hear_only(m.Final)]


def test_what_is_taken_from_a_node_by_mistake_has_its_whole_time_at_the_next() -> None:
    """Now and then an engine needs most of the time for a request like all others, and says nothing meanwhile."""
    stage = Stage()
    client = stage.client()
    nodes = [stage.worker(f"n{number}") for number in range(2)]
    answer_all(stage, client, nodes)
    client.request(1, flags=STREAM, ttl_s=30.0)
    first = next(node for node in nodes if node.work())
    stage.stay_alive(34, *nodes, client)
    (second,) = [node for node in nodes if node is not first]
    second.final(second.work()[0].lease)

    assert rid_of(1) in [one.rid for one in client.hear_only(m.Final)]


def test_a_silent_node_is_asked_at_once_when_it_is_the_only_one_left() -> None:
    """Its time of silence is for the good of others: without any it would only lose what it might save."""
    pair = Pair()
    pair.ask(8)
    pair.turn(7.0)  # it has just fallen silent, and would get nothing for 5 s
    assert pair.stage.counters.redispatches == pair.taken
    pair.honest.send(m.Draining(pair.honest.epoch))
    pair.ask(2)
    assert pair.liar.work() == []
    pair.stage.stay_alive(3, pair.liar, pair.client)

    assert len(pair.liar.work()) == 1


def test_what_must_not_run_twice_stays_where_it_is() -> None:
    """Silence is no proof that it did not run."""
    stage = Stage()
    client = stage.client()
    liar, honest = stage.worker("liar"), stage.worker("honest")
    client.request(1, flags=0, ttl_s=8.0)
    client.request(2, flags=0, ttl_s=8.0)
    honest.final(honest.work()[0].lease)
    stage.stay_alive(9, liar, honest, client)

    assert len(liar.work()) == 1
    assert honest.work() == []
    assert [one.code for one in client.hear_only(m.Error)] == [504]


def test_a_name_that_no_dispatch_could_carry_is_refused_at_the_start(tmp_path: Any) -> None:
    """Else every request of that principal would be lost on the way to a node."""
    from zmqrt.broker.auth import Gate
    from zmqrt.protocol import transport
    from zmqrt.protocol.errors import ConfigurationError

    (tmp_path / "authorized_workers").write_text("")
    (tmp_path / "authorized_clients").write_text(f"{'a' * 40} {'n' * 200}\n")
    context = transport.make_context()
    with pytest.raises(ConfigurationError, match="200 characters"):
        Gate(context, tmp_path)
    context.term()


def test_times_beyond_seven_weeks_are_told_as_that() -> None:
    """A WELCOME that clients cannot read would be no welcome."""
    from zmqrt.protocol.timing import Timing

    stage = Stage(Timing(heartbeat_s=1e9, eviction_s=2e9, request_timeout_s=1e12), outstanding=2**40)
    client = stage.client(greets=False)
    client.send(m.Hello(client.uuid, 1, 1))
    (welcome,) = client.hear_only(m.Welcome)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(welcome), type=m.Welcome) == welcome
