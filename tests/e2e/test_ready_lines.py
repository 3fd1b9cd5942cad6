"""What a ready line promises: whoever asks at that very moment is served."""

from __future__ import annotations

import socket

import pytest

from support.http import answer_of
from support.stack import Stack, eventually

pytestmark = pytest.mark.e2e


def test_a_request_at_the_ready_line_finds_the_node() -> None:
    """Without a second try, on every way there is: natively, over HTTP, in probes and lists."""
    with Stack() as stack:
        stack.broker("--heartbeat-interval", "0.5", "--node-eviction-timeout", "1")
        bridge = stack.bridge()
        with stack.client(name="early") as client:
            for _ in range(2):
                eventually(lambda: answer_of(bridge, "GET", "/readyz")[0] == 503, what="no node")
                node = stack.worker()
                snapshot = client.status()
                assert snapshot.ready
                assert ("active", "ready") in {(one.health, one.phase) for one in snapshot.nodes}
                assert answer_of(bridge, "GET", "/readyz")[0] == 200
                assert answer_of(bridge, "GET", "/v1/models")[1]["data"][0]["id"] == "mock"
                assert client.infer("hi", max_tokens=1, retries=0, model="mock").usage.completion_tokens == 1
                assert answer_of(bridge, "POST", "/infer", {"prompt": "hi", "max_tokens": 1})[0] == 200
                node.stop()


def test_every_broker_that_is_there_knows_the_node_at_its_ready_line() -> None:
    """One that is down is not waited for."""
    with socket.socket() as taken, Stack() as stack:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        brokers = [stack.broker(), stack.broker()]
        workers = [one.endpoints["workers"] for one in brokers]
        stack.workers = ",".join([*workers, f"tcp://127.0.0.1:{taken.getsockname()[1]}"])
        stack.worker()

        for broker in brokers:
            stack.clients = broker.endpoints["clients"]
            assert stack.status().ready
