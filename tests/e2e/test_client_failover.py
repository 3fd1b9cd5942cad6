"""The client against real brokers and nodes: a broker killed, a broker leaving, a stream left early."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from support.stack import Process, Stack, eventually, running, start
from zmqrt.client import Client, Handle, Result

pytestmark = pytest.mark.e2e

STREAMS = 60
TOKENS = 150


@pytest.fixture
def pair() -> Iterator[tuple[Stack, Process, Process]]:
    """Start two brokers with two nodes that serve both."""
    with Stack() as stack:
        first, second = stack.broker("--broker-id", "first"), stack.broker("--broker-id", "second")
        workers = f"{first.endpoints['workers']},{second.endpoints['workers']}"
        for number in range(2):
            stack.processes.append(
                start("worker", "--broker", workers, "--engine", "mock", "--node-id", f"node-{number}")
            )
        stack.wait_for_nodes(2)
        stack.clients = f"{first.endpoints['clients']},{second.endpoints['clients']}"
        yield stack, first, second


def start_streams(client: Client) -> list[Handle[Result]]:
    """Start streams whose tokens are known by their seeds."""
    return [
        client.submit(f"stream {seed}", stream=True, seed=seed, max_tokens=TOKENS, ignore_eos=True, model="mock")
        for seed in range(STREAMS)
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_streams_outlive_their_broker(pair: tuple[Stack, Process, Process], number: signal.Signals) -> None:
    """Killed or asked to leave: every stream goes on at the exact token, through the other one."""
    stack, first, second = pair
    with stack.client() as client:
        undisturbed = [handle.result().token_ids for handle in start_streams(client)]
        handles = start_streams(client)
        for handle in handles:
            assert handle.next_chunk() is not None
        first.signal(number)

        assert [handle.result().token_ids for handle in handles] == undisturbed
        assert client.infer("after", max_tokens=1, model="mock").usage.completion_tokens == 1
        assert client.endpoint == second.endpoints["clients"]


def test_a_stream_left_early_frees_its_slot() -> None:
    """On the node too, not only at the broker."""
    with running(worker=("--engine-opt", "step_ms=50")) as stack, stack.client() as client:
        with client.stream("endless", max_tokens=4000, ignore_eos=True, model="mock") as stream:
            next(stream)
            eventually(lambda: client.status().running == 1, what="a busy fleet")

        def is_idle() -> bool:
            snapshot = client.status()
            return not snapshot.running and not any(one.running for node in snapshot.nodes for one in node.devices)

        eventually(is_idle, within_s=10, what="an idle fleet")


@pytest.mark.slow
def test_a_slow_stream_is_kept_by_a_client_that_says_nothing_else() -> None:
    """Longer than a broker keeps the work of a silent client: the library gives signs of life by itself."""
    impatient = ("--heartbeat-interval", "0.4", "--node-eviction-timeout", "0.8")
    with running(broker=impatient, worker=("--engine-opt", "step_ms=3000")) as stack, stack.client() as client:
        handle = client.submit("slow", stream=True, max_tokens=4, ignore_eos=True, model="mock", timeout_s=20)

        assert sum(len(chunk.token_ids) for chunk in handle) == 4
