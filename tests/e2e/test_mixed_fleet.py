"""An old node, whose offer says nothing of what it can do, beside a new one that can do less: each gets what it can."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.http import answer_of
from support.process_engines import ENV
from support.stack import Stack
from zmqrt.client import BadRequestError

pytestmark = pytest.mark.e2e
OLD = """
from zmqrt.worker.device_pool import DevicePool
DevicePool._capabilities = lambda *_: None  # as nodes from before: the wire has nothing in this place
from zmqrt.worker.__main__ import main
main()
"""
SOON = ("--heartbeat-interval", "2", "--node-eviction-timeout", "4")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """Run a broker, the two nodes of one model, and a bridge."""
    with Stack() as stack:
        stack.broker(*SOON)
        mock = ("--engine", "mock", "--devices", "0", "--node-id", "old", "--served-model-name", "toy")
        stack.script(OLD, "--broker", stack.workers, *mock)
        named = ("--device", "cpu", "--served-model-name", "toy")
        stack.worker(*named, engine="support.toy_engines:speaker", node_id="new", env=ENV)
        stack.wait_for_nodes(2)
        stack.bridge()
        yield stack


def test_each_request_goes_where_it_can_be_served(fleet: Stack) -> None:
    """All that ask for log probabilities to the old node, and the others to both."""
    with fleet.client() as client, ThreadPoolExecutor(16) as threads:

        def ask(number: int) -> bool:
            logprobs = 1 if number % 2 else None
            result = client.infer(f"word {number}", max_tokens=4, logprobs=logprobs, model="toy", timeout_s=30)
            return logprobs is None or bool(result.logprobs)

        assert all(threads.map(ask, range(40)))
    done = {node.node_id: node.completed for node in fleet.status().nodes}

    assert done["old"] >= 20
    assert done["new"] > 0


def test_what_can_be_done_is_shown(fleet: Stack) -> None:
    """In the status, in the list of models, and over HTTP."""
    snapshot = fleet.status()
    service = next(one for one in snapshot.services if one.service == "toy")
    assert service.capabilities == {"logprobs": 1, "token_ids": 1}
    assert {node.node_id: node.capabilities for node in snapshot.nodes} == {"old": ["logprobs", "token_ids"], "new": []}

    with fleet.client() as client:
        assert (
            next(one for one in client.models() if one.service == "toy").can == "logprobs (1 of 2), token_ids (1 of 2)"
        )
    _, models, _ = answer_of(fleet.processes[-1], "GET", "/v1/models")
    assert {one["id"]: one["capabilities"] for one in models["data"]}["toy"] == ["logprobs", "token_ids"]


def test_once_the_node_that_can_is_gone_it_is_a_400_that_names_it(fleet: Stack) -> None:
    """Natively and over HTTP; what the others can do goes on."""
    fleet.processes[1].kill()

    with fleet.client() as client, pytest.raises(BadRequestError, match=r"^logprobs: no node of 'toy' can do this"):
        client.infer("word", logprobs=1, model="toy", timeout_s=30)
    bridge, plain = fleet.processes[-1], {"model": "toy", "prompt": "word"}
    status, answer, _ = answer_of(bridge, "POST", "/v1/completions", {**plain, "logprobs": 1})
    assert (status, answer["error"]["param"]) == (400, "logprobs")
    assert answer_of(bridge, "POST", "/v1/completions", plain)[0] == 200
