"""Real brokers and nodes with a bad network between them: cut, half-open, slow, stalled. What was asked is answered.

Each stream's tokens are known beforehand, so one that was lost, repeated or drawn anew is a wrong answer.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import pytest
from chaos.proxy import FaultProxy, Way

from support.stack import Process, Stack, eventually
from zmqrt.client import Client, ConnectError, Embed, Handle, Result
from zmqrt.worker.engines.mock_tokens import expected_tokens

pytestmark = pytest.mark.e2e
STREAMS = 12
TOKENS = 120
SLOW_STEPS = ("--engine-opt", "step_ms=10")
"""A stream then lasts longer than it takes to notice a fault."""
IMPATIENT = ("--heartbeat-interval", "0.5", "--node-eviction-timeout", "1.5")
LARGE = 6 << 20
STALL_S = 1.0
TO_TARGET: Way = "to_target"
TO_CLIENT: Way = "to_client"


@dataclass
class Fleet:
    """A broker, nodes that reach it through a proxy each, and a proxy for clients."""

    stack: Stack
    broker: Process
    front: FaultProxy
    lines: list[FaultProxy]

    def client(self) -> Client:
        """Make a client that connects through the proxy."""
        return Client(self.front.endpoint, timeout_s=60)

    def counter(self, name: str) -> int:
        """Ask the broker itself for one of its counters."""
        return self.stack.status().counters[name]

    def health(self) -> dict[str, str]:
        """Ask the broker itself how its nodes are."""
        return {node.node_id: node.health for node in self.stack.status().nodes}


@contextlib.contextmanager
def running(*, nodes: int = 1, broker: tuple[str, ...] = ()) -> Generator[Fleet, None, None]:
    """Start a fleet and wait until it serves."""
    with Stack() as stack, contextlib.ExitStack() as proxies:
        process = stack.broker(*broker)
        front = proxies.enter_context(FaultProxy(process.endpoints["clients"]))
        lines = [proxies.enter_context(FaultProxy(process.endpoints["workers"])) for _ in range(nodes)]
        for number, line in enumerate(lines):
            stack.workers = line.endpoint
            stack.worker(*SLOW_STEPS, node_id=f"node-{number}")
        stack.wait_for_nodes(nodes)
        yield Fleet(stack, process, front, lines)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Run one node with the usual timers, for all faults that pass."""
    with running() as made:
        yield made


def start_streams(client: Client, count: int = STREAMS, tokens: int = TOKENS) -> list[Handle[Result]]:
    """Start streams and wait until each of them flows."""
    handles = [
        client.submit(
            token_ids=[number, 1, 2],
            stream=True,
            seed=number,
            temperature=0.7,
            max_tokens=tokens,
            ignore_eos=True,
            model="mock",
        )
        for number in range(count)
    ]
    for handle in handles:
        assert handle.next_chunk() is not None
    return handles


def assert_complete(handles: list[Handle[Result]], tokens: int = TOKENS) -> None:
    """See that each stream ends with exactly its tokens."""
    for number, handle in enumerate(handles):
        expected = expected_tokens([number, 1, 2], tokens, seed=number, temperature=0.7, ignore_eos=True)
        assert handle.result().token_ids == expected


def test_a_reset_between_client_and_broker_breaks_no_stream(fleet: Fleet) -> None:
    """The client registers anew, with the same broker, and its streams go on."""
    before = fleet.counter("sessions_opened")
    with fleet.client() as client:
        handles = start_streams(client)
        fleet.front.reset()

        assert_complete(handles)
        assert client.endpoint == fleet.front.endpoint
    assert fleet.counter("sessions_opened") >= before + 3  # the client's two; and who looks at the counters opens one


def test_a_reset_between_node_and_broker_breaks_no_stream(fleet: Fleet) -> None:
    """The node comes back within its grace and claims what it runs: nothing is computed twice."""
    before = fleet.stack.status().counters
    with fleet.client() as client:
        handles = start_streams(client)
        fleet.lines[0].reset()

        assert_complete(handles)
    after = fleet.stack.status().counters
    assert after["leases_rebound"] - before["leases_rebound"] == STREAMS
    assert after["dispatches"] - before["dispatches"] == STREAMS


@pytest.mark.parametrize("way", ["to_target", "to_client"])
@pytest.mark.parametrize("where", ["client", "node"])
def test_an_end_in_one_direction_is_a_lost_connection(fleet: Fleet, where: str, way: Way) -> None:
    """A peer that hears FIN but could still send leaves, comes back, and its streams go on."""
    line = fleet.front if where == "client" else fleet.lines[0]
    counter = "sessions_opened" if where == "client" else "leases_rebound"
    with fleet.client() as client:
        handles = start_streams(client)
        before = fleet.counter(counter)
        line.close_one_way(way)

        assert_complete(handles)
    assert fleet.counter(counter) >= before + 2


def test_late_bytes_in_small_pieces_are_answered(fleet: Fleet) -> None:
    """Every length from one to seven, and 20 ms late, on both sides of the broker."""
    try:
        with fleet.client() as client:
            for number in range(1, 8):
                for line in (fleet.front, fleet.lines[0]):
                    line.split_bytes, line.delay_s = number, 0.02

                assert_complete(start_streams(client, 2, 10), 10)
    finally:
        for line in (fleet.front, fleet.lines[0]):
            line.split_bytes, line.delay_s = 0, 0.0


def test_a_client_that_meets_a_frozen_network_is_told_in_time(fleet: Fleet) -> None:
    """Something accepts its connection and says nothing: the error names that, not only the time that has passed."""
    fleet.front.freeze()
    begin = time.monotonic()
    words = "accepts the connection but says nothing"
    try:
        with pytest.raises(ConnectError, match=words), Client(fleet.front.endpoint, connect_timeout_s=4):
            pass
        took_s = time.monotonic() - begin
    finally:
        fleet.front.thaw()

    assert took_s < 4 + 1
    with fleet.client() as client:
        assert client.infer("hi", max_tokens=1, model="mock").usage.completion_tokens == 1


@pytest.mark.parametrize("where", ["client", "node"])
def test_a_large_body_that_stalls_half_way_is_delivered(fleet: Fleet, where: str) -> None:
    """For a second nothing of it moves, then it goes on: nobody hangs up, and nobody sends it twice."""
    line, way = (fleet.front, TO_TARGET) if where == "client" else (fleet.lines[0], TO_CLIENT)
    text = random.Random(where).randbytes(LARGE // 2).hex()  # all of it travels; the model reads the beginning
    lost = fleet.counter("nodes_lost")
    with fleet.client() as client:
        before = line.passed_bytes[way]
        line.bytes_per_s = 2 * LARGE
        handle = client.submit_task(Embed(input=text, truncate=True), model="mock-embed")
        eventually(lambda: line.passed_bytes[way] - before > LARGE // 4, what="a part of the body")
        line.freeze()
        try:
            assert line.passed_bytes[way] - before < LARGE
            over = time.monotonic() + STALL_S
            eventually(lambda: time.monotonic() > over)
        finally:
            line.thaw()
            line.bytes_per_s = 0

        vectors = handle.result().vectors
        passed = line.passed_bytes[way] - before
        assert vectors == client.embed(text, model="mock-embed", truncate=True)
    assert passed < 1.5 * LARGE
    assert fleet.counter("nodes_lost") == lost


def test_a_node_behind_a_partition_is_replaced_fenced_and_taken_back() -> None:
    """Half-open for longer than the eviction time: its streams go on elsewhere, what it says later is not heard."""
    with running(nodes=2, broker=IMPATIENT) as fleet, fleet.client() as client:
        handles = start_streams(client)
        fleet.lines[0].freeze()
        eventually(lambda: fleet.health().get("node-0") != "active", what="a suspect node")
        assert_complete(handles)
        seen = fleet.stack.status().counters
        late = seen["late_reply"]

        fleet.lines[0].thaw()

        eventually(lambda: fleet.counter("late_reply") > late, what="late results")
        eventually(lambda: fleet.health() == {"node-0": "active", "node-1": "active"}, what="both nodes")
        assert_complete(start_streams(client, 2, 10), 10)
    assert seen["nodes_evicted"] >= 1
    assert seen["resumes"] >= 1


def test_a_client_behind_a_partition_goes_on_at_the_next_broker() -> None:
    """Half-open, nothing is reset: silence alone tells, and the streams go on through the other broker."""
    with Stack() as stack, contextlib.ExitStack() as proxies:
        brokers = [stack.broker(*IMPATIENT) for _ in range(2)]
        fronts = [proxies.enter_context(FaultProxy(one.endpoints["clients"])) for one in brokers]
        stack.workers = ",".join(one.endpoints["workers"] for one in brokers)
        stack.worker(*SLOW_STEPS)
        for one in brokers:
            stack.clients = one.endpoints["clients"]
            stack.wait_for_nodes(1)
        with Client([front.endpoint for front in fronts], timeout_s=60) as client:
            assert client.endpoint == fronts[0].endpoint
            handles = start_streams(client)
            fronts[0].freeze()

            assert_complete(handles)
            assert client.endpoint == fronts[1].endpoint
            fronts[0].thaw()
            assert_complete(start_streams(client, 2, 10), 10)
