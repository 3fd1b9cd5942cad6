"""A node and its brokers: registration, heartbeats, credit, loss and return, drain. Events in, actions out."""

import itertools

import pytest

from support.node import PARAMS, RUN, SERVICE, STREAM, UUID, Node, ids_of, result, rid, sent, serving, submitted, texts
from zmqrt.protocol import messages as m
from zmqrt.worker import actions as a
from zmqrt.worker.broker_sessions import SessionState
from zmqrt.worker.core import WorkerState
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import TokenEvent


def dials(made: list[a.Action]) -> list[int]:
    """Return the brokers that a new socket is wanted for."""
    return [one.broker for one in made if isinstance(one, a.Dial)]


def test_ready_goes_out_before_any_model_has_loaded() -> None:
    """The service that is coming is named with no room; credit is zero until the engine is up."""
    node = Node(devices=2)

    node.core.tick(node.now)
    dialed = node.done()
    node.core.connected(0, node.now)
    (ready,) = sent(node.done(), m.Ready)
    welcomed = node.receive(m.WorkerWelcome("b", 1, 3, PARAMS))
    loaded = node.load(0, slots=2)

    assert dials(dialed) == [0]
    assert ready == m.Ready(
        worker_uuid=UUID,
        node_id="n1",
        capacity=100,
        services=[m.ServiceOffer(SERVICE, 0, "generate")],
        devices=[m.DeviceInfo("mock:0", "mock"), m.DeviceInfo("mock:1", "mock")],
    )
    (beat,) = sent(welcomed, m.Heartbeat)
    assert (beat.epoch, beat.phase, beat.dispatch_limit) == (3, "starting", 0)
    (beat,) = sent(loaded, m.Heartbeat)
    assert (beat.phase, beat.dispatch_limit) == ("ready", 2)
    assert beat.services == [m.ServiceOffer(SERVICE, 2, "generate", "toy", "r1", 64, ["rendering"])]
    assert node.core.state is WorkerState.READY


def test_a_node_offers_what_all_of_its_engines_can_do() -> None:
    """A request of a broker goes to any of them; conversations are rendered here, whatever an engine says."""
    node = Node(devices=2)
    node.register()
    told = [*node.load(0, can=["logprobs", "tools"]), *node.wait(0.25)]
    both = [*node.load(1, can=["tools", "vision"]), *node.wait(0.25)]

    assert [offer.capabilities for beat in sent(told, m.Heartbeat) for offer in beat.services or []] == [
        ["logprobs", "rendering", "tools"]
    ]
    assert [offer.capabilities for beat in sent(both, m.Heartbeat) for offer in beat.services or []] == [
        ["rendering", "tools"]
    ]


def test_progress_is_told_when_it_is_news() -> None:
    """A new phase at once, percents in steps of five, every device by itself."""
    node = Node(devices=2)
    node.register()
    told: dict[int, int] = {}

    for percent in (0, 2, 4, 5, 7, 11):
        node.now = node.core.sessions[0].beaten_at + 0.2
        for beat in sent(node.engine(ipc.EngineLoading("loading", percent, percent / 10)), m.Heartbeat):
            told[percent] = beat.devices[0].percent
    node.now += 0.2
    made = node.engine(ipc.EngineLoading("warming", 11, 2.0), device=1)

    assert told == {0: 0, 5: 5, 11: 11}
    (beat,) = sent(made, m.Heartbeat)
    assert [one.phase for one in beat.devices] == ["loading", "warming"]
    assert beat.phase == "warming"


def test_a_factory_that_calls_itself_ready_is_not_believed() -> None:
    """The services are told when the engine says which it has; before, there are none to tell of."""
    node = Node()
    node.register()
    node.wait(0.25)
    too_soon = node.engine(ipc.EngineLoading("ready", 100, 0.1))
    node.wait(0.25)
    loaded = [*node.load(slots=2), *node.wait(0.25)]

    assert not any(one.max_inflight for beat in sent(too_soon, m.Heartbeat) for one in beat.services or [])
    assert [beat.services for beat in sent(loaded, m.Heartbeat)] == [
        [m.ServiceOffer(SERVICE, 2, "generate", "toy", "r1", 64, ["rendering"])]
    ]


def test_hasty_progress_is_told_in_few_heartbeats() -> None:
    """A broker counts a flood as a strike; the last word is told all the same."""
    node = Node(devices=8)
    node.register()
    node.wait(0.25)
    before = len(sent(node.log, m.Heartbeat))

    for percent in range(0, 101, 5):
        for device in range(8):
            node.engine(ipc.EngineLoading("loading", percent, 0.1), device=device)
    node.wait(0.25)

    beats = sent(node.log, m.Heartbeat)[before:]
    assert len(beats) == 2
    assert {one.percent for one in beats[-1].devices} == {100}


def test_a_service_list_is_sent_once() -> None:
    """Heartbeats repeat it only when it has changed."""
    node = serving()

    beats = sent(node.wait(1.2), m.Heartbeat)

    assert [beat.services for beat in beats] == [None] * len(beats)
    assert len(beats) >= 2


def test_heartbeats_go_out_every_half_interval_whatever_else_is_sent() -> None:
    """Results do not replace them."""
    node = serving()
    node.dispatch(1)
    begin = node.now
    times: list[float] = []

    while node.now < begin + 3:
        made = node.wait(0.05)
        node.receive(m.BrokerHeartbeat(1, 1))
        made += node.step(TokenEvent(ticket=node.ticket(), token_ids=ids_of("a")))
        times += [node.now] * len(sent(made, m.Heartbeat))

    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) >= 4
    assert max(gaps) <= 0.61
    counts = [beat.count for beat in sent(node.log, m.Heartbeat)]
    assert counts == list(range(1, len(counts) + 1))


def test_credit_is_cumulative_and_carried_by_what_goes_out_anyway() -> None:
    """The limit is what was received plus what is free; CREDIT is sent only when nothing else says it."""
    node = serving(slots=2)

    limits: list[int] = []
    for number in range(1, 4):
        made = node.dispatch(number)
        assert sent(made, m.Credit) == []
        made = node.step(TokenEvent(ticket=node.ticket(number), finish_reason="length"))
        limits += [one.dispatch_limit for one in sent(made, m.WorkerFinal)]
        assert sent(made, m.Credit) == []

    assert limits == [3, 4, 5]


def test_capacity_is_the_smaller_of_the_setting_and_the_engines() -> None:
    """NODE_MAX_CAPACITY bounds what the slots would hold, and the other way round."""
    small, large = Node(capacity=3, batch=8), Node(capacity=100, batch=8)
    limits: list[int] = []
    for node in (small, large):
        node.register()
        limits.append(sent(node.load(slots=8), m.Heartbeat)[0].dispatch_limit)

    assert limits == [3, 16]


def test_each_broker_has_its_own_epoch_and_credit() -> None:
    """What one uses is free for the other again when it is done."""
    node = serving(brokers=2, slots=2)
    node.register(1, epoch=50)
    node.dispatch(1, broker=0)
    node.dispatch(2, broker=0)

    full = node.dispatch(3, broker=1)
    freed = node.step(TokenEvent(ticket=node.ticket(1), finish_reason="length"))

    (error,) = sent(full, m.WorkerError, broker=1)
    assert (error.epoch, error.code, error.dispatch_limit) == (50, 429, 2)
    (credit,) = sent(freed, m.Credit, broker=1)
    assert (credit.epoch, credit.dispatch_limit) == (50, 3)
    assert sent(freed, m.Credit, broker=0) == []


def test_a_silent_broker_is_dropped_and_dialed_again() -> None:
    """After the eviction time, and not a moment earlier; an answer keeps the session."""
    node = serving()
    node.receive(m.BrokerHeartbeat(1, 1))

    assert not [one for one in node.wait(1.9) if isinstance(one, a.HangUp)]
    made = node.wait(0.2)
    assert [one.broker for one in made if isinstance(one, a.HangUp)] == [0]
    assert dials(made + node.wait(0.2)) == [0]


def test_a_process_that_was_stopped_hears_first_and_judges_then() -> None:
    """Signs of life that waited in the socket count, however late it is."""
    node = serving()
    node.now += 12

    node.receive(m.BrokerHeartbeat(1, 1))
    node.core.tick(node.now)

    assert not [one for one in node.done() if isinstance(one, a.HangUp)]


def test_held_leases_are_claimed_and_replayed_from_where_the_broker_is() -> None:
    """The engine went on meanwhile; nothing is missing and nothing comes twice."""
    node = serving()
    node.dispatch(1)
    ticket = node.ticket()
    node.step(TokenEvent(ticket=ticket, token_ids=ids_of("abc")))
    node.core.lost(0, "connection reset", node.now)
    silent = node.step(TokenEvent(ticket=ticket, token_ids=ids_of("def")))

    node.wait(0.1)
    node.core.connected(0, node.now)
    (ready,) = sent(node.done(), m.Ready)
    back = node.receive(m.WorkerWelcome("b", 1, 2, PARAMS, [m.Rebound(1, 2)]))
    more = node.step(TokenEvent(ticket=ticket, token_ids=ids_of("g"), finish_reason="length"))

    assert [one for one in silent if isinstance(one, a.Send)] == []
    assert ready.held == [m.Held(1, rid(1), 6)]
    assert [(one.epoch, one.seq, one.n) for one in sent(back, m.WorkerPartial)] == [(2, 2, 4)]
    assert texts(back) == ["cdef"]
    assert [(one.seq, one.n) for one in sent(more, m.WorkerPartial)] == [(6, 1)]
    assert sent(more, m.WorkerFinal)[0].total_n == 7


def test_a_job_that_ended_while_the_broker_was_away_is_replayed_with_its_end() -> None:
    """Also one whose FINAL was sent just before the connection broke."""
    node = serving()
    node.dispatch(1)
    node.dispatch(2)
    node.step(TokenEvent(ticket=node.ticket(1), token_ids=ids_of("ab"), finish_reason="length"))
    node.core.lost(0, "connection reset", node.now)
    node.step(TokenEvent(ticket=node.ticket(2), token_ids=ids_of("cd"), finish_reason="length"))

    back = node.register(epoch=2, rebound=[m.Rebound(1, 1), m.Rebound(2, 0)])

    assert [(one.lease, one.seq, one.n) for one in sent(back, m.WorkerPartial)] == [(1, 1, 1), (2, 0, 2)]
    assert [(one.epoch, one.lease, one.total_n) for one in sent(back, m.WorkerFinal)] == [(2, 1, 2), (2, 2, 2)]


def test_leases_that_are_not_rebound_are_aborted() -> None:
    """They run elsewhere by now; the slot is worth more than the result."""
    node = serving()
    node.dispatch(1)
    ticket = node.ticket()
    node.core.lost(0, "connection reset", node.now)

    back = node.register(epoch=2)

    assert submitted(back) == [ipc.CancelTicket(ticket)]
    assert node.core.requests.jobs == {}
    assert sent(back, m.Heartbeat)[0].dispatch_limit == 2


def test_held_leases_are_given_up_after_the_grace() -> None:
    """A broker that stays away has given them to others."""
    node = serving()
    node.dispatch(1)
    ticket = node.ticket()
    node.core.lost(0, "connection reset", node.now)

    assert submitted(node.wait(1.9)) == []
    assert submitted(node.wait(0.2)) == [ipc.CancelTicket(ticket)]
    late = node.register(epoch=2, rebound=[m.Rebound(1, 0)])
    assert [(one.lease, one.code, one.retryable) for one in sent(late, m.WorkerError)] == [(1, 503, True)]


def test_a_rebound_beyond_what_was_made_is_handed_back() -> None:
    """It cannot be this node's lease any more."""
    node = serving()
    node.dispatch(1)
    node.core.lost(0, "connection reset", node.now)

    back = node.register(epoch=2, rebound=[m.Rebound(1, 5)])

    assert [(one.lease, one.code) for one in sent(back, m.WorkerError)] == [(1, 503)]
    assert node.core.requests.jobs == {}


def test_jobs_of_one_broker_survive_the_loss_of_another() -> None:
    """Sessions share the devices and nothing else."""
    node = serving(brokers=2)
    node.register(1, epoch=5)
    node.dispatch(1, broker=0)
    node.dispatch(2, broker=1)

    node.core.lost(0, "killed", node.now)
    made = node.step(
        TokenEvent(ticket=node.ticket(1), token_ids=ids_of("a")),
        TokenEvent(ticket=node.ticket(2), token_ids=ids_of("b")),
    )

    assert [(one.broker, one.message.lease) for one in made if isinstance(one, a.Send)] == [(1, 2)]  # type: ignore[union-attr]


@pytest.mark.parametrize("code", [401, 403, 409, 426])
def test_a_dismissed_node_comes_back_later(code: int) -> None:
    """Whatever the reason: an operator may mend it, so it never gives a broker up."""
    node = serving()

    made = node.receive(m.Dismiss(code, "go away"))

    assert [one.broker for one in made if isinstance(one, a.HangUp)] == [0]
    assert any(isinstance(one, a.Note) and "go away" in one.text for one in made)
    assert dials(node.wait(5.1)) == [0]


def test_nothing_is_believed_before_welcome() -> None:
    """A dispatch without a registration is not run."""
    node = Node()
    node.core.tick(node.now)
    node.core.connected(0, node.now)

    node.dispatch(1)

    assert node.core.requests.jobs == {}


def test_a_broker_that_cannot_be_reached_is_told_of_once() -> None:
    """The operator reads why, and reads it again only when the reason changes or a session was lost."""
    node = Node()
    for cause in ("nobody listens there", "nobody listens there", "the broker does not know this worker's key"):
        while node.core.sessions[0].state is SessionState.DOWN:
            node.wait(0.05)
        node.core.lost(0, cause, node.now)
    node.done()

    told = [one.text for one in node.log if isinstance(one, a.Note) and one.level == "warning"]
    assert [text for text in told if "nobody listens" in text] == [told[0]]
    assert "this worker's key" in told[-1]


@pytest.mark.parametrize("step", ["handshake", "welcome"])
def test_a_broker_that_does_not_answer_is_tried_again(step: str) -> None:
    """Neither a hanging handshake nor a missing WELCOME holds the node up."""
    node = Node()
    node.core.tick(node.now)
    if step == "welcome":
        node.core.connected(0, node.now)
    node.done()

    made = node.wait(5.1)

    assert [one.broker for one in made if isinstance(one, a.HangUp)] == [0]
    assert dials(made + node.wait(0.1)) == [0]


def test_a_drained_node_finishes_and_leaves() -> None:
    """DRAINING, no new work, the last result, goodbye, exit 0."""
    node = serving()
    node.dispatch(1)

    node.core.drain(30, "SIGTERM", node.now)
    told = node.done()
    refused = node.dispatch(2)
    made = node.step(TokenEvent(ticket=node.ticket(1), token_ids=ids_of("a"), finish_reason="length"))

    assert len(sent(told, m.Draining)) == 1
    assert [(one.code, one.reason, one.retryable) for one in sent(refused, m.WorkerError)] == [(503, "draining", True)]
    assert [type(one.message) for one in made if isinstance(one, a.Send)][-2:] == [m.WorkerFinal, m.Leave]
    assert [one.code for one in made if isinstance(one, a.Exit)] == [0]
    assert node.core.next_deadline() == float("inf")


def test_an_idle_node_leaves_at_once() -> None:
    """Nothing to wait for."""
    node = serving()

    node.core.drain(30, "SIGTERM", node.now)

    assert [one.code for one in node.done() if isinstance(one, a.Exit)] == [0]


def test_at_the_drain_deadline_requests_are_handed_back() -> None:
    """503, retryable, so that they go on elsewhere; then the node leaves all the same."""
    node = serving()
    node.dispatch(1)
    node.core.drain(1, "SIGTERM", node.now)

    made = node.wait(1.1)

    assert [(one.code, one.reason, one.retryable) for one in sent(made, m.WorkerError)] == [(503, "draining", True)]
    assert len(sent(made, m.Leave)) == 1
    assert [one.code for one in made if isinstance(one, a.Exit)] == [0]


def test_a_broker_may_ask_for_the_drain() -> None:
    """`zmqrt drain NODE`."""
    node = serving()
    node.dispatch(1)

    node.receive(m.Drain(5000))

    assert node.core.state is WorkerState.DRAINING


def test_a_node_whose_last_device_fails_exits_with_1() -> None:
    """After telling the brokers why."""
    node = Node(devices=2)
    node.register()
    node.load(1)

    first = node.kill(0, is_restarted=False, reason="no such model")
    made = node.kill(1, is_restarted=False, reason="no such model")

    assert not [one for one in first if isinstance(one, a.Exit)]
    assert [beat.phase for beat in sent(made, m.Heartbeat)] == ["failed"]
    assert [type(one.message) for one in made if isinstance(one, a.Send)][-1] is m.Leave
    assert [one.code for one in made if isinstance(one, a.Exit)] == [1]


def test_a_held_job_holds_up_the_drain_only_for_the_grace() -> None:
    """Its broker may be gone for good."""
    node = serving()
    node.dispatch(1)
    node.core.lost(0, "killed", node.now)
    node.core.drain(30, "SIGTERM", node.now)

    made = node.wait(2.1)

    assert [one.code for one in made if isinstance(one, a.Exit)] == [0]


def test_unary_results_survive_a_reconnect_too() -> None:
    """A unary answer that was made meanwhile goes out whole."""
    node = serving()
    node.dispatch(1, flags=RUN & ~m.RESUMABLE)
    node.core.lost(0, "reset", node.now)
    node.step(TokenEvent(ticket=node.ticket(1), token_ids=ids_of("ab"), finish_reason="length"))

    back = node.register(epoch=2, rebound=[m.Rebound(1, 0)])

    assert sent(back, m.WorkerPartial) == []
    assert result(back).text == "ab"
    assert node.core.sessions[0].state is SessionState.ACTIVE
    assert STREAM & m.STREAM


def test_a_node_is_served_once_a_broker_knows_that_it_is_ready() -> None:
    """What the engines say is not enough: a request at that moment would find no node at the broker."""
    node = Node(brokers=2)
    node.register(0)
    node.load()
    node.done()
    assert not node.core.is_served(node.now)

    (beat,) = [one for one in sent(node.log, m.Heartbeat) if one.phase == "ready"]
    node.receive(m.BrokerHeartbeat(1, beat.count - 1))
    assert not node.core.is_served(node.now)
    node.receive(m.BrokerHeartbeat(1, beat.count))
    assert not node.core.is_served(node.now)  # the other broker is about to know it too

    node.core.lost(1, "nobody listens there", node.now)
    assert node.core.is_served(node.now)


def test_a_broker_that_hangs_keeps_a_node_from_being_announced_for_a_second_only() -> None:
    """Its connection is neither there nor refused."""
    node = Node(brokers=2)
    node.register(0)
    node.load()
    node.done()
    node.receive(m.BrokerHeartbeat(1, sent(node.log, m.Heartbeat)[-1].count))
    assert not node.core.is_served(node.now)

    assert node.core.is_served(node.now + 1.0)
