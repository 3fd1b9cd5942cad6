"""Everything is restarted in turn, under load, and nobody notices."""

from __future__ import annotations

import http.client
import json
import signal

import pytest

from support.load import Load
from support.stack import Stack, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PACE = ("--engine-opt", "step_ms=10", "--devices", "mock:0")
NODES = 3


def test_a_fleet_is_restarted_piece_by_piece_without_an_error() -> None:
    """Two brokers, three nodes, three clients: all answers are right, all exit codes 0."""
    with Stack() as stack:
        brokers = [stack.broker("--broker-id", "b-0"), stack.second_broker("--broker-id", "b-1")]
        nodes = [stack.worker(*PACE, node_id=f"node-{number}") for number in range(NODES)]
        stack.wait_for_nodes(NODES)
        with Load(stack.clients) as load:
            for one in (nodes[0], brokers[0], nodes[1], brokers[1], nodes[2]):
                load.wait_for_more()
                one.signal(signal.SIGTERM)
                assert one.wait() == 0, one.output()
                stack.again(one)
                wait_until_whole(stack)
            load.wait_for_more()

        assert load.errors == []
        print(f"{load.answered} answers during five restarts")


def wait_until_whole(stack: Stack) -> None:
    """Wait until each broker has all nodes: the next restart may take any of them."""
    for endpoint in stack.clients.split(","):
        stack.wait_for_nodes(NODES, endpoint)


def test_a_bridge_that_leaves_finishes_its_open_streams() -> None:
    """SIGTERM while events come: the last one is `done`, and the bridge ends with 0."""
    with running(worker=("--engine-opt", "step_ms=30", "--devices", "mock:0")) as stack, stack.client() as client:
        whole = client.infer("hi", max_tokens=30, temperature=0, model="mock").text
        bridge = stack.bridge()
        connection = http.client.HTTPConnection(bridge.endpoints["http"].removeprefix("http://"), timeout=60)
        body = json.dumps({"prompt": "hi", "max_tokens": 30, "temperature": 0}).encode()
        connection.request("POST", "/infer", body, {"Accept": "text/event-stream"})
        with connection.getresponse() as answer:
            first = answer.readline()
            bridge.signal(signal.SIGTERM)
            rest = answer.read().decode()
        connection.close()

        assert first.startswith(b"id: ")
        *_, event, data = rest.rstrip().splitlines()
        assert event == "event: done"
        assert json.loads(data.removeprefix("data: "))["text"] == whole
        assert rest.count("event: token") > 10, "it was still going on"
        assert bridge.wait() == 0, bridge.output()
