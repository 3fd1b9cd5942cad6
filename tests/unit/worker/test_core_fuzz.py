"""The worker's core between brokers and engines that say anything at all: it neither breaks nor loses count.

`test_core_machine` plays brokers and engines that keep to the protocol and checks the answers; here nobody does.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.examples import examples
from support.node import PARAMS, SERVICE, Node, body
from support.wire import of_struct, plausible, weighted
from zmqrt.protocol import codec, tasks
from zmqrt.protocol import messages as m
from zmqrt.worker import actions as a
from zmqrt.worker.broker_sessions import SessionState
from zmqrt.worker.core import WorkerState
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import Capacity, EngineStats, ItemResult, TokenEvent

BROKERS, DEVICES = 2, 2
SMALL = st.integers(0, 4)
RIDS = st.sampled_from([bytes([number]) * 16 for number in range(1, 5)])
CHUNK = st.builds(tasks.GenerateChunk, ids=st.just([97, 98]), text=st.just(["a", "b"])).map(tasks.encode)
BODY = st.sampled_from(
    [
        body("hi", max_tokens=3),
        body("hi", stop=["a"]),
        body("x" * 99),
        tasks.encode(tasks.Embed(input="hi")),
        tasks.encode(tasks.Generate(token_ids=[1, 2], logprobs=2)),
        b"",
    ]
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "rid": RIDS,
    "lease": SMALL,
    "next_n": SMALL,
    "service": st.sampled_from([SERVICE, SERVICE, "other"]),
    "ttl_ms": st.integers(1, 5000),
    "flags": st.sampled_from([m.IDEMPOTENT, m.IDEMPOTENT | m.STREAM | m.RESUMABLE, m.STREAM, 0, 63]),
    "resume_n": st.just(0),
    "user": st.just("u"),
    "body": BODY,
    "resume": st.one_of(st.just(b""), st.lists(CHUNK, max_size=2).map(msgspec.msgpack.encode)),
    "params": st.just(PARAMS),
    "deadline_ms": st.integers(0, 5000),
    "ext": st.sampled_from([{}, {"seed": 1}, {"seed": "no number"}]),
}
ASKING = plausible(m.Dispatch, LIKELY)
OTHERS = [plausible(kind, LIKELY) for kind in (m.WorkerWelcome, m.WorkerCancel, m.BrokerHeartbeat)]
FROM_BROKER = weighted((3, ASKING), (1, st.one_of(OTHERS)))
ENDING = st.one_of([of_struct(one) for one in m.ToWorker.__args__])
TICKETS = st.integers(0, 12)
REASON = st.sampled_from([None, None, "stop", "length", "cancelled", "error"])
ERROR = st.sampled_from([None, None, None, "it broke", "x" * 600])
TASKS: dict[ipc.Kind, m.TaskName] = {"token": "generate", "batch": "embed", "stream": "generate"}


def offered(kind: ipc.Kind, name: str, slots: int, revision: str) -> ipc.EngineService:
    """Build a service as an engine process tells it."""
    capacity = Capacity(slots=slots, context=64)
    return ipc.EngineService(name=name, kind=kind, task=TASKS[kind], capacity=capacity, model="toy", revision=revision)


OFFERED = st.builds(
    offered,
    st.sampled_from(list(TASKS)),
    st.sampled_from(["", "embed"]),
    st.integers(0, 3),
    st.sampled_from(["r1", "r2"]),
)
EVENT = st.builds(
    TokenEvent,
    ticket=TICKETS,
    token_ids=st.lists(st.sampled_from([97, 98, 0xF0, 256, 257]), max_size=3),
    finish_reason=REASON,
    error=ERROR,
)
RESULT = st.builds(ItemResult, ticket=TICKETS, body=st.sampled_from([None, {}, {"vectors": b"1234"}]), error=ERROR)
STEP_OF_ENGINE = st.builds(
    ipc.StepReport,
    st.lists(EVENT, max_size=4),
    st.lists(RESULT, max_size=2),
    st.sampled_from([{}, {"": EngineStats(running=1)}]),
)
PERCENT = st.floats(0, 100)
REST_OF_ENGINE = st.one_of(
    st.builds(ipc.EngineReady, st.lists(OFFERED, max_size=2)),
    st.builds(ipc.EngineLoading, st.sampled_from(["loading", "warming"]), PERCENT, st.floats(0, 1e6)),
    st.builds(ipc.EngineFailed, st.text(max_size=600)),
    st.builds(ipc.TextChunk, TICKETS, st.sampled_from(["", "a"]), st.booleans(), ERROR),
    st.builds(ipc.Refused, TICKETS, st.booleans(), st.text(max_size=600)),
)
FROM_ENGINE = weighted((2, STEP_OF_ENGINE), (1, REST_OF_ENGINE))
BROKER, DEVICE = st.integers(0, BROKERS - 1), st.integers(0, DEVICES - 1)
STEP = weighted(
    (8, st.tuples(st.just("broker"), BROKER, st.lists(FROM_BROKER, min_size=1, max_size=4))),
    (8, st.tuples(st.just("engine"), DEVICE, st.lists(FROM_ENGINE, min_size=1, max_size=4))),
    (2, st.tuples(st.just("load"), DEVICE, st.sampled_from(["token", "token", "batch", "stream"]))),
    (3, st.tuples(st.just("welcome"), BROKER)),
    (1, st.tuples(st.just("broker"), BROKER, st.lists(ENDING, min_size=1, max_size=2))),
    (1, st.tuples(st.just("connected"), BROKER)),
    (1, st.tuples(st.just("lost"), BROKER)),
    (1, st.tuples(st.just("exited"), DEVICE, st.sampled_from([True, True, True, False]))),
    (3, st.tuples(st.just("time"), st.sampled_from([0.01, 0.3, 1.0, 3.0]))),
)


def obey(node: Node, made: list[a.Action]) -> None:
    """Check what the node wants done: messages that a broker can read, to brokers that are there, and no more."""
    assert len(made) < 1000
    for action in made:
        if isinstance(action, a.Send):
            (frames,) = codec.pack([action.message])
            assert codec.FROM_WORKER.unpack(frames) == codec.Unpacked([action.message])
        elif isinstance(action, a.ToEngine):
            assert ipc.decode_to_engine(ipc.encode([action.message]))


def happen(node: Node, what: str, *details: Any) -> list[a.Action]:
    """Let one thing happen."""
    match what, *details:
        case "broker", broker, messages:
            return node.receive(*messages, broker=broker)
        case "engine", device, messages:
            return node.engine(*messages, device=device)
        case "load", device, kind:
            return node.load(device, kind=kind)
        case "welcome", broker:
            is_down = node.core.sessions[int(broker)].state is SessionState.DOWN
            return node.register(broker) if is_down else []
        case "connected", broker:
            node.core.connected(broker, node.now)
        case "lost", broker:
            node.core.lost(broker, "reset", node.now)
        case "exited", device, is_restarted:
            return node.kill(device, is_restarted=is_restarted)
        case _:
            return node.wait(*details)
    return node.done()


@settings(
    max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(STEP, min_size=10, max_size=40))
def test_nothing_that_brokers_and_engines_say_breaks_a_node(steps: list[tuple[Any, ...]]) -> None:
    """No exception, tables that agree, words that a broker can read; and in the end the node drains and leaves."""
    node = Node(brokers=BROKERS, devices=DEVICES, batch=2)
    for broker in range(BROKERS):
        obey(node, node.register(broker))
    for device in range(DEVICES):
        obey(node, node.load(device))
    for one in steps:
        started = time.thread_time()
        obey(node, happen(node, *one))
        assert time.thread_time() - started < 2.0
        if node.core.state is WorkerState.GONE:
            return  # the agent ends with it: nothing comes any more
        node.check()

    node.core.drain(1.0, "enough", node.now)
    obey(node, node.done())
    obey(node, node.wait(3.0))
    assert node.core.state is WorkerState.GONE
    assert node.core.requests.jobs == {}
