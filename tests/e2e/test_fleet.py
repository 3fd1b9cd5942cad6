"""Two mock nodes behind one broker: everything is answered, in proportion to what each node can do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter

import pytest

from support.stack import Stack, running
from zmqrt.client import AsyncClient, BusyError

pytestmark = pytest.mark.e2e
REQUESTS = 2000
CLIENTS = 10


async def from_many_clients(
    stack: Stack, *, count: int, retries: int | None, max_outstanding: int = 4096
) -> Counter[str]:
    """Send `count` short generations at once from ten clients; count what came of them."""
    clients = [AsyncClient(stack.clients, timeout_s=60, max_outstanding=max_outstanding) for _ in range(CLIENTS)]
    outcomes: Counter[str] = Counter()

    async def one(number: int) -> None:
        try:
            result = await clients[number % CLIENTS].infer(
                f"request {number}", max_tokens=4, model="mock", retries=retries, ignore_eos=True
            )
        except BusyError as busy:
            assert busy.retry_after_s > 0
            outcomes["busy"] += 1
        else:
            assert len(result.token_ids) == 4
            outcomes["answered"] += 1

    try:
        await asyncio.gather(*(one(number) for number in range(count)))
    finally:
        for client in clients:
            await client.close()
    return outcomes


def test_status_lists_two_nodes_and_four_devices() -> None:
    """`zmqrt status --json` shows health, load and capacity of each."""
    with running(nodes=2, worker=("--devices", "0,1")) as stack:
        shown = subprocess.run(
            [sys.executable, "-m", "zmqrt.client.cli", "status", "--json", "--broker", stack.clients],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )

    nodes = json.loads(shown.stdout)["nodes"]
    assert {node["node_id"] for node in nodes} == {"node-0", "node-1"}
    assert sum(len(node["devices"]) for node in nodes) == 4
    assert all(node["health"] == "active" and node["capacity"] > 0 and node["load"] == 0 for node in nodes)


def test_two_thousand_at_once_are_all_answered_with_raised_limits() -> None:
    """Nothing is refused when the queue and the clients may hold them all."""
    limits = ("--max-in-flight-requests", "2000", "--max-queued-requests", "2000", "--max-outstanding", "4096")
    with running(nodes=2, broker=limits) as stack:
        outcomes = asyncio.run(from_many_clients(stack, count=REQUESTS, retries=0))

    assert outcomes == {"answered": REQUESTS}


def test_the_surplus_is_told_when_to_come_back_and_a_client_that_does_gets_all() -> None:
    """With the default queue some get 429 with a time; asked again as advised, every one is answered."""
    with running(nodes=2, worker=("--engine-opt", "step_ms=10", "--node-max-capacity", "20")) as stack:
        refused = asyncio.run(from_many_clients(stack, count=REQUESTS, retries=0))
        retried = asyncio.run(from_many_clients(stack, count=REQUESTS, retries=None))

    assert refused["busy"] > 0
    assert refused["busy"] + refused["answered"] == REQUESTS
    assert retried == {"answered": REQUESTS}


def in_flight_shares(stack: Stack, *, samples: int) -> Counter[str]:
    """Keep the fleet saturated with unary requests and sum what the broker has on each node."""

    async def load(client: AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await client.infer("load", max_tokens=20, model="mock", ignore_eos=True)

    async def measure() -> Counter[str]:
        sums: Counter[str] = Counter()
        stop = asyncio.Event()
        async with AsyncClient(stack.clients, timeout_s=60) as client:
            tasks = [asyncio.create_task(load(client, stop)) for _ in range(200)]
            taken = 0
            while taken < samples:
                snapshot = await client.status()
                if snapshot.queued:  # saturated: every slot is taken and some wait
                    sums.update({node.node_id: node.in_flight for node in snapshot.nodes})
                    taken += 1
            stop.set()
            await asyncio.gather(*tasks)
        return sums

    return asyncio.run(measure())


def test_at_saturation_load_follows_capacity() -> None:
    """A node with twice the capacity has twice the requests in flight, within ten percent."""
    with running(nodes=0) as stack:
        slow_steps = ("--engine-opt", "step_ms=20")  # so that the engines, not this machine, are what is saturated
        stack.worker("--node-max-capacity", "40", "--slots", "40", *slow_steps, node_id="large")
        stack.worker("--node-max-capacity", "20", "--slots", "20", *slow_steps, node_id="small")
        stack.wait_for_nodes(2)
        shares = in_flight_shares(stack, samples=50)

    assert 1.8 < shares["large"] / shares["small"] < 2.2


@pytest.mark.slow
def test_a_slow_node_gets_less() -> None:
    """Of two equal nodes, one made four times slower completes less than half of the even share."""

    async def send(count: int, at_once: int) -> None:
        gate = asyncio.Semaphore(at_once)
        async with AsyncClient(stack.clients, timeout_s=60) as client:

            async def one() -> None:
                async with gate:
                    await client.infer("load", max_tokens=8, model="mock", ignore_eos=True)

            await asyncio.gather(*(one() for _ in range(count)))

    with running(nodes=0) as stack:
        stack.worker("--engine-opt", "step_ms=40", node_id="fast")
        stack.worker("--engine-opt", "step_ms=160", node_id="slow")
        stack.wait_for_nodes(2)
        asyncio.run(send(500, at_once=60))
        done = {node.node_id: node.completed for node in stack.status().nodes}

    assert done["fast"] + done["slow"] == 500
    assert done["slow"] < 500 / 4
