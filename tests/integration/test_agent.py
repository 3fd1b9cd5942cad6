"""A real node (agent and mock engine processes) and brokers that the tests play, over real sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.hand_broker import RUN, HandBroker
from support.node_process import node
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.tasks import GenerateChunk
from zmqrt.worker.engines.mock_tokens import EOS, expected_tokens
from zmqrt.worker.tokenizer import ByteTokenizer

pytestmark = pytest.mark.integration


@pytest.fixture
def broker() -> Iterator[HandBroker]:
    """Play one broker."""
    with HandBroker() as one:
        yield one


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HandBroker]:
    """Play the broker of one node that serves all tests that leave it as it is."""
    arguments = ("--engine-opt", "step_ms=5", "--max-model-len", "1000")
    with HandBroker(eviction_s=60) as one, node(tmp_path_factory.mktemp("shared"), [one], *arguments):
        one.until(lambda: loaded(one))
        yield one


def generate(prompt: str = "hello", **fields: object) -> bytes:
    """Return the body of a generation."""
    return tasks.encode(tasks.Generate(prompt=prompt, raw=True, **fields))  # type: ignore[arg-type]


def expected(prompt: str, max_tokens: int, *, seed: int = 5, temperature: float = 0.7) -> list[int]:
    """Return the toy model's answer."""
    ids = ByteTokenizer().encode(prompt, is_raw=True)
    return expected_tokens(ids, max_tokens, seed=seed, temperature=temperature)


def text_of(ids: list[int]) -> str:
    """Return the text of ids."""
    return bytes(one for one in ids if one < 256).decode("utf-8", "replace")


def tokens_made(broker: HandBroker) -> list[int]:
    """Return each device's counter after the next heartbeat."""
    beats = len(broker.all(m.Heartbeat))
    broker.until(lambda: len(broker.all(m.Heartbeat)) > beats)
    return [device.tokens for device in broker.all(m.Heartbeat)[-1].devices]


def loaded(broker: HandBroker, devices: int = 2) -> bool:
    """Whether all devices are ready."""
    return broker.phases() == ["ready"] * devices


def test_ready_comes_before_the_model_and_progress_follows(tmp_path: Path, broker: HandBroker) -> None:
    """Phase and percent of each device by heartbeat, credit only when there is something to run on."""
    with node(tmp_path, [broker], "--engine-opt", "load_s=1.5") as process:
        broker.until(lambda: loaded(broker))
        line = process.ready_line()

    ready = broker.said[0]
    assert isinstance(ready, m.Ready)
    assert [one.id for one in ready.devices] == ["mock:0", "mock:1"]
    assert ready.services == [m.ServiceOffer("mock", 0, "generate")]
    beats = broker.all(m.Heartbeat)
    before = [one for one in beats if one.phase != "ready"]
    assert {one.dispatch_limit for one in before} == {0}
    assert "loading" in {one.phase for one in before}
    percents = [device.percent for one in beats for device in one.devices[:1] if device.phase == "loading"]
    assert len(set(percents)) >= 4
    assert percents == sorted(percents)
    assert beats[-1].dispatch_limit > 0
    offers = [one for beat in beats for one in beat.services or [] if one.max_inflight]
    assert {(one.service, one.task) for one in offers} == {
        ("mock", "generate"),
        ("mock-embed", "embed"),
        ("mock-rerank", "rerank"),
        ("mock-classify", "classify"),
    }
    assert (line["event"], line["role"], line["node_id"]) == ("ready", "worker", "n1")
    assert line["devices"] == ["mock:0", "mock:1"]


def test_streams_and_unary_answers_are_the_toy_models(shared: HandBroker) -> None:
    """Every token as computed from scratch; text, usage and revision in FINAL; units without a gap."""
    broker = shared
    stream = broker.dispatch(generate("hello", max_tokens=60))
    unary = broker.dispatch(generate("world", max_tokens=40, temperature=0.0), flags=RUN)
    broker.until(lambda: broker.outcome(stream) and broker.outcome(unary))

    ids = expected("hello", 60)
    assert broker.ids(stream) == ids
    assert broker.text(stream) + broker.result(stream).tail == text_of(ids)
    assert broker.result(stream).usage == tasks.Usage(prompt_tokens=6, completion_tokens=len(ids))
    assert broker.result(stream).finish_reason == ("stop" if ids[-1] == EOS else "length")
    greedy = expected("world", 40, temperature=0.0)
    assert broker.result(unary).ids == greedy == broker.ids(unary)
    assert broker.result(unary).text == text_of(greedy)


def test_many_requests_share_the_devices_and_each_gets_its_own_answer(shared: HandBroker) -> None:
    """The units of a step travel together; both devices work."""
    broker = shared
    before = tokens_made(broker)
    leases = {broker.dispatch(generate(f"prompt {n}", max_tokens=20, ignore_eos=True)): n for n in range(60)}
    broker.until(lambda: all(broker.outcome(lease) for lease in leases))
    broker.until(lambda: sum(tokens_made(broker)) >= sum(before) + 60 * 20)

    for lease, n in leases.items():
        prompt = ByteTokenizer().encode(f"prompt {n}", is_raw=True)
        assert broker.ids(lease) == expected_tokens(prompt, 20, seed=5, temperature=0.7, ignore_eos=True)
    assert [now - then for now, then in zip(tokens_made(broker), before, strict=True)] == [600, 600]
    assert broker.largest_envelope >= 10


def test_cancel_stops_the_engine(shared: HandBroker) -> None:
    """No outcome, no further unit, and the slot is free again."""
    broker = shared
    lease = broker.dispatch(generate(max_tokens=900, ignore_eos=True))
    broker.until(lambda: len(broker.ids(lease)) > 5)
    broker.tell(m.WorkerCancel(lease))
    tokens_made(broker)
    count = len(broker.ids(lease))
    tokens_made(broker)

    assert broker.outcome(lease) is None
    assert len(broker.ids(lease)) == count < 900
    assert sum(one.running for one in broker.all(m.Heartbeat)[-1].devices) == 0


def test_a_killed_engine_restarts_alone_and_no_unit_is_lost(tmp_path: Path, broker: HandBroker) -> None:
    """Its requests go on on the other device; the streams there do not notice."""
    with node(tmp_path, [broker], "--engine-opt", "step_ms=5", "--engine-opt", "eos=never") as process:
        broker.until(lambda: loaded(broker))
        leases = [broker.dispatch(generate(f"p{n}", max_tokens=150)) for n in range(8)]
        broker.until(lambda: all(len(broker.ids(lease)) > 10 for lease in leases))
        victim, survivor = process.engine_pids()
        os.kill(victim, signal.SIGKILL)
        broker.until(lambda: "restarting" in broker.phases())
        broker.until(lambda: all(broker.outcome(lease) for lease in leases))
        broker.until(lambda: loaded(broker))
        pids = process.engine_pids()

    assert survivor in pids
    assert victim not in pids
    assert sorted(one.restarts for one in broker.all(m.Heartbeat)[-1].devices) == [0, 1]
    assert "restarting" in {device.phase for beat in broker.all(m.Heartbeat) for device in beat.devices}
    for n, lease in enumerate(leases):
        prompt = ByteTokenizer().encode(f"p{n}", is_raw=True)
        assert broker.ids(lease) == expected_tokens(prompt, 150, seed=5, temperature=0.7, ignore_eos=True)


def test_when_the_only_engine_is_killed_its_requests_come_back(tmp_path: Path, broker: HandBroker) -> None:
    """503, retryable, at once; and the node serves again after the restart."""
    arguments = ("--devices", "0", "--engine-opt", "step_ms=5", "--engine-opt", "eos=never")
    with node(tmp_path, [broker], *arguments) as process:
        broker.until(lambda: loaded(broker, 1))
        lease = broker.dispatch(generate(max_tokens=2000))
        broker.until(lambda: len(broker.ids(lease)) > 3)
        (victim,) = process.engine_pids()
        os.kill(victim, signal.SIGKILL)
        begin = time.monotonic()
        broker.until(lambda: broker.outcome(lease))
        took = time.monotonic() - begin
        broker.until(lambda: broker.phases() == ["restarting"])
        broker.until(lambda: loaded(broker, 1) and broker.credit() > 33)
        again = broker.dispatch(generate("again", max_tokens=5))
        broker.until(lambda: broker.outcome(again))

    error = broker.outcome(lease)
    assert isinstance(error, m.WorkerError)
    assert (error.code, error.reason, error.retryable) == (503, "engine_restarted", True)
    assert took < 1
    assert broker.ids(again) == expected_tokens(
        ByteTokenizer().encode("again", is_raw=True), 5, seed=5, temperature=0.7, ignore_eos=True
    )


def test_a_resumed_stream_goes_on_at_the_exact_token(shared: HandBroker) -> None:
    """Prefix in, the rest out, however many units were delivered."""
    broker = shared
    ids = expected("resume me", 30)
    prefixes = {cut: GenerateChunk(ids=ids[:cut], text=[""] * cut) for cut in range(1, len(ids) + 1)}
    body = generate("resume me", max_tokens=30)
    leases = {cut: broker.dispatch(body, prefix=[prefix]) for cut, prefix in prefixes.items()}
    broker.until(lambda: all(broker.outcome(lease) for lease in leases.values()))

    for cut, lease in leases.items():
        assert ids[:cut] + broker.ids(lease) == ids
        assert broker.result(lease).usage.completion_tokens == len(ids)


def test_two_brokers_are_served_side_by_side(tmp_path: Path, broker: HandBroker) -> None:
    """Each has its own registration and credit; the end of one leaves the other's streams alone."""
    with HandBroker() as other, node(tmp_path, [broker, other], "--engine-opt", "step_ms=5"):
        broker.until(lambda: loaded(broker) and loaded(other), beside=[other])
        first = broker.dispatch(generate("first", max_tokens=200, ignore_eos=True))
        second = other.dispatch(generate("second", max_tokens=200, ignore_eos=True), rid=b"another request.")
        broker.until(lambda: len(broker.ids(first)) > 5 and len(other.ids(second)) > 5, beside=[other])
        broker.__exit__(None, None, None)
        other.until(lambda: other.outcome(second))

    prompt = ByteTokenizer().encode("second", is_raw=True)
    assert other.ids(second) == expected_tokens(prompt, 200, seed=5, temperature=0.7, ignore_eos=True)
    assert {type(one) for one in broker.said} >= {m.Ready, m.Heartbeat, m.WorkerPartial}


def test_a_broker_that_returns_gets_its_streams_replayed(tmp_path: Path) -> None:
    """The node claims the lease; the broker says from where; nothing is missing."""
    with contextlib.ExitStack() as stack:
        first = HandBroker()
        process = stack.enter_context(node(tmp_path, [first], "--engine-opt", "step_ms=5", "--engine-opt", "eos=never"))
        first.until(lambda: loaded(first))
        lease = first.dispatch(generate("held", max_tokens=200))
        first.until(lambda: len(first.ids(lease)) > 20)
        first.__exit__(None, None, None)
        second = stack.enter_context(HandBroker(endpoint=first.endpoint))
        second.rebound = [m.Rebound(lease, 7)]
        second.until(lambda: second.outcome(lease))
        assert process.process.poll() is None

    ready = second.all(m.Ready)[0]
    assert [(one.lease, one.n > 20) for one in ready.held] == [(lease, True)]
    prompt = ByteTokenizer().encode("held", is_raw=True)
    whole = expected_tokens(prompt, 200, seed=5, temperature=0.7, ignore_eos=True)
    assert second.all(m.WorkerPartial, lease)[0].seq == 7
    assert second.ids(lease) == whole[7:]


def test_sigterm_drains_and_exits_with_0(tmp_path: Path, broker: HandBroker) -> None:
    """What runs is finished, what comes is refused, the broker is told goodbye, no process stays."""
    with node(tmp_path, [broker], "--engine-opt", "step_ms=5") as process:
        broker.until(lambda: loaded(broker))
        lease = broker.dispatch(generate("drain", max_tokens=100, ignore_eos=True))
        broker.until(lambda: len(broker.ids(lease)) > 5)
        engines = process.engine_pids()
        process.process.send_signal(signal.SIGTERM)
        broker.until(lambda: broker.all(m.Draining))
        late = broker.dispatch(generate("late"))
        broker.until(lambda: broker.all(m.Leave))
        code = process.wait()

    assert code == 0
    assert len(broker.ids(lease)) == 100
    refusal = broker.outcome(late)
    assert isinstance(refusal, m.WorkerError)
    assert (refusal.code, refusal.reason) == (503, "draining")
    assert not [pid for pid in engines if psutil.pid_exists(pid)]


def test_at_its_drain_deadline_a_node_hands_its_work_back(tmp_path: Path, broker: HandBroker) -> None:
    """A stream that would take minutes goes on elsewhere."""
    arguments = ("--engine-opt", "step_ms=20", "--engine-opt", "eos=never", "--drain-timeout", "500ms")
    with node(tmp_path, [broker], *arguments) as process:
        broker.until(lambda: loaded(broker))
        lease = broker.dispatch(generate(max_tokens=8000))
        broker.until(lambda: len(broker.ids(lease)) > 2)
        process.process.send_signal(signal.SIGTERM)
        broker.until(lambda: broker.outcome(lease))
        code = process.wait()

    error = broker.outcome(lease)
    assert isinstance(error, m.WorkerError)
    assert (error.code, error.reason, error.retryable) == (503, "draining", True)
    assert code == 0


def test_a_second_signal_stops_at_once(tmp_path: Path, broker: HandBroker) -> None:
    """Somebody who presses Ctrl-C twice means it."""
    with node(tmp_path, [broker], "--engine-opt", "step_ms=20", "--engine-opt", "eos=never") as process:
        broker.until(lambda: loaded(broker))
        lease = broker.dispatch(generate(max_tokens=8000))
        broker.until(lambda: broker.ids(lease))
        process.process.send_signal(signal.SIGINT)
        broker.until(lambda: broker.all(m.Draining))
        process.process.send_signal(signal.SIGINT)
        code = process.wait(4)

    assert code == 130


def test_a_long_prompt_gets_its_answer_while_streams_go_on(shared: HandBroker) -> None:
    """A prompt far over the context gets its 400 with both numbers."""
    broker = shared
    stream = broker.dispatch(generate("short", max_tokens=50, ignore_eos=True))
    long = broker.dispatch(generate("x" * 2_000_000))
    broker.until(lambda: broker.outcome(long) and broker.outcome(stream))

    error = broker.outcome(long)
    assert isinstance(error, m.WorkerError)
    assert (error.code, error.reason) == (400, "context_length_exceeded")
    assert "2000001" in error.text
    assert "1000" in error.text
    assert len(broker.ids(stream)) == 50


def test_embeddings_come_from_the_second_service(shared: HandBroker) -> None:
    """One vector for each input, as numbers in memory."""
    broker = shared
    lease = broker.dispatch(tasks.encode(tasks.Embed(input=["a", "b"])), service="mock-embed", flags=RUN)
    broker.until(lambda: broker.outcome(lease))

    end = broker.outcome(lease)
    assert isinstance(end, m.WorkerFinal)
    assert tasks.decode(end.body, tasks.EmbedResult).vectors.shape == [2, 64]


def test_a_model_that_does_not_exist_ends_the_node_with_its_name(tmp_path: Path, broker: HandBroker) -> None:
    """Exit 1 and a sentence; the broker hears of it."""
    with node(tmp_path, [broker], "--device", "cpu", "--model", "no-such-model", engine="generate") as process:
        broker.until(lambda: broker.all(m.Leave))
        code = process.wait()

    assert code == 1
    assert "no-such-model" in broker.all(m.Leave)[0].reason
    assert broker.all(m.Heartbeat)[-1].phase == "failed"
