"""Every status that the contract of /infer has (401: test_bridge.py), caused for real, and with what it promises."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.http import answer_of, calling
from support.stack import Process, Stack, eventually, running, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SHORT = {"prompt": "hi", "max_tokens": 2}
LONG = {"prompt": "hi", "max_tokens": 5000}
FAULTS = "step_ms=2,eos=never,fail_on_prompt=sulk,crash_on_prompt=die"


@pytest.fixture(scope="module")
def usual() -> Generator[tuple[Stack, Process]]:
    """A node that serves, fails and dies as its prompts say; a bridge with small limits."""
    with running(worker=("--engine-opt", FAULTS, "--devices", "0", "--max-model-len", "600")) as stack:
        yield stack, stack.bridge("--body-limit", "20000", "--body-timeout", "500ms")


def refused(bridge: Process, body: object, **headers: str) -> tuple[int, str, dict[str, str]]:
    """POST what is refused; return status, reason and headers."""
    status, answer, said = answer_of(bridge, "POST", "/infer", body, headers)
    assert answer["request_id"] == said["x-request-id"]
    return status, answer.get("reason") or answer["detail"][0]["type"], said


@contextlib.contextmanager
def busy(bridge: Process, stack: Stack, count: int) -> Generator[None]:
    """Keep requests running and waiting, then leave all at once."""
    body = json.dumps(LONG).encode()
    with contextlib.ExitStack() as callers:
        for number in range(1, count + 1):
            callers.enter_context(calling(bridge, "/infer", body))
            wait_until_held(stack, number)
        yield


def wait_until_held(stack: Stack, count: int) -> None:
    """Wait until the broker holds so many requests."""

    def is_so() -> bool:
        snapshot = stack.status()
        return snapshot.running + snapshot.queued == count

    eventually(is_so, what=f"{count} requests")


def test_200_400_413_422(usual: tuple[Stack, Process]) -> None:
    """What is right, what is no JSON, what is too large, and what is not the contract, or does not fit the model."""
    bridge = usual[1]

    assert answer_of(bridge, "POST", "/infer", SHORT)[0] == 200
    assert refused(bridge, b"{")[:2] == (400, "not_json")
    assert refused(bridge, {"prompt": "x" * 30000})[:2] == (413, "too_large")
    assert refused(bridge, {"prompt": "hi", "top_p": 1})[:2] == (422, "extra_forbidden")
    status, reason, _ = refused(bridge, {"prompt": "x" * 1000})
    assert (status, reason) == (422, "context_length_exceeded")


def test_404_405(usual: tuple[Stack, Process]) -> None:
    """In the shape of the rest, and with what there is."""
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/infer", 405), ("POST", "/livez", 405)):
        found, answer, headers = answer_of(usual[1], method, path, SHORT if method == "POST" else None)
        assert (found, answer["request_id"]) == (status, headers["x-request-id"])


def test_408_for_a_body_that_does_not_come(usual: tuple[Stack, Process]) -> None:
    """Half of one is not waited for."""
    with calling(usual[1], "/infer", json.dumps(SHORT).encode(), sent=5) as caller:
        caller.settimeout(20)
        answer = caller.recv(65536)

    assert answer.startswith(b"HTTP/1.1 408 ")


def test_500_when_the_model_raises(usual: tuple[Stack, Process]) -> None:
    """And nobody is to send it again."""
    status, reason, headers = refused(usual[1], {"prompt": "do not sulk"})

    assert (status, reason, headers["x-should-retry"]) == (500, "model_raised", "false")


def test_503_when_nodes_die_of_it(usual: tuple[Stack, Process]) -> None:
    """After three engines it is not tried on a fourth."""
    status, reason, headers = refused(usual[1], {"prompt": "die"})

    assert (status, reason) == (503, "poison")
    assert int(headers["retry-after"]) >= 1
    usual[0].wait_for_nodes(1)


def test_503_when_the_node_is_lost_and_attempts_are_used_up() -> None:
    """With none left to try."""
    broker = ("--max-retries", "0", "--heartbeat-interval", "0.5", "--node-eviction-timeout", "2")
    with running(broker=broker, worker=("--engine-opt", "step_ms=200,eos=never")) as stack:
        bridge = stack.bridge()
        got: list[tuple[int, str, dict[str, str]]] = []
        waiting = threading.Thread(target=lambda: got.append(refused(bridge, LONG)))
        waiting.start()
        eventually(lambda: stack.status().running == 1, what="a running request")
        stack.node("node-0").kill()
        waiting.join()

    assert got[0][:2] == (503, "worker_lost")
    assert int(got[0][2]["retry-after"]) >= 1


def test_429_when_all_are_busy() -> None:
    """With a time to come back that is worth waiting for."""
    one_at_a_time = ("--engine-opt", "step_ms=50,eos=never", "--node-max-capacity", "1")
    with running(broker=("--max-in-flight-requests", "2"), worker=one_at_a_time) as stack:
        bridge = stack.bridge()
        with busy(bridge, stack, 3):
            status, reason, headers = refused(bridge, SHORT)

        assert (status, reason) == (429, "queue_full")
        assert int(headers["retry-after"]) >= 1
        wait_until_held(stack, 0)


def test_503_without_a_node_while_one_starts_and_while_the_broker_drains() -> None:
    """Each says when to come back, and which of the three it is."""
    with Stack() as stack:
        broker = stack.broker()
        bridge = stack.bridge()
        status, reason, headers = refused(bridge, SHORT)
        assert (status, reason, int(headers["retry-after"]) >= 1) == (503, "no_worker", True)

        words = ("--broker", stack.workers, "--engine", "mock", "--engine-opt", "load_s=60")
        stack.processes.append(start("worker", *words, wait=False))
        eventually(lambda: stack.status().nodes, what="a node that loads")
        status, reason, headers = refused(bridge, SHORT)
        assert (status, reason, int(headers["retry-after"]) >= 1) == (503, "starting", True)

        stack.worker("--engine-opt", "step_ms=100,eos=never", node_id="up")
        stack.wait_for_nodes(1)
        with busy(bridge, stack, 1):
            broker.popen.terminate()
            with ThreadPoolExecutor(2) as pool:  # each is kept for a while, in case another broker comes
                asked = [pool.submit(eventually, lambda: _refusal(bridge), what="a broker that drains") for _ in "12"]
                refusals = [answer.result() for answer in asked]
        assert [reason for reason, _ in refusals] == ["draining"] * 2
        assert all(int(headers["retry-after"]) >= 1 for _, headers in refusals)


def _refusal(bridge: Process) -> tuple[str, dict[str, str]] | None:
    status, answer, headers = answer_of(bridge, "POST", "/infer", SHORT)
    return (answer["reason"], headers) if status == 503 else None


def test_504_when_time_is_up() -> None:
    """After the time that was set, and not to be sent again."""
    with running(worker=("--engine-opt", "step_ms=100,eos=never")) as stack:
        bridge = stack.bridge("--request-timeout", "700ms")
        began = time.monotonic()
        status, reason, headers = refused(bridge, LONG)

    assert (status, reason, headers["x-should-retry"]) == (504, "deadline_exceeded", "false")
    assert time.monotonic() - began >= 0.7


def test_403_for_a_page_from_elsewhere(usual: tuple[Stack, Process]) -> None:
    """While there are no keys to tell friend from foe."""
    found: Any = refused(usual[1], SHORT, origin="http://evil.example")

    assert found[:2] == (403, "forbidden_host")
