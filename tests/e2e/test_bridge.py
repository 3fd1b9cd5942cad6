"""The bridge as a process: streams, callers who leave, fleets that are not there, and its own end."""

import contextlib
import http.client
import json
import signal
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from support.stack import Process, Stack, eventually, running, start
from zmqrt.client import Client
from zmqrt.protocol.keys import generate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SLOW = ("--engine-opt", "step_ms=200,eos=never")
LONG = json.dumps({"prompt": "hi", "max_tokens": 1000}).encode()


def address_of(bridge: Process) -> str:
    """Return host and port."""
    return bridge.endpoints["http"].removeprefix("http://")


@contextlib.contextmanager
def asked(bridge: Process, path: str, body: bytes | None = None, **headers: str) -> Generator[http.client.HTTPResponse]:
    """Ask, and give the answer while it is open."""
    connection = http.client.HTTPConnection(address_of(bridge), timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        yield connection.getresponse()
    finally:
        connection.close()


def answer_of(bridge: Process, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Ask and return status, JSON and headers."""
    with asked(bridge, path, body, **headers) as answer:
        return answer.status, json.loads(answer.read()), dict(answer.headers)


@pytest.fixture(scope="module")
def slow() -> Generator[tuple[Stack, Process]]:
    """A fleet that takes 200 ms a token, and a bridge to it."""
    with running(worker=SLOW) as stack:
        yield stack, stack.bridge()


def test_a_stream_comes_as_it_is_made_and_ends_with_the_v1_response(slow: tuple[Stack, Process]) -> None:
    """The joined pieces are its text."""
    body = json.dumps({"prompt": "hi", "max_tokens": 4}).encode()
    with asked(slow[1], "/infer", body, Accept="text/event-stream") as answer:
        events = [block.splitlines() for block in answer.read().decode().strip().split("\n\n")]
    data = [json.loads(lines[-1].removeprefix("data: ")) for lines in events]

    assert [lines[1] for lines in events[:-1]] == ["event: token"] * (len(events) - 1)
    assert events[-1][1] == "event: done"
    assert "".join(piece["text"] for piece in data[:-1]) == data[-1]["text"]
    assert data[-1]["api_version"] == "v1"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_caller_who_leaves_frees_the_slot(slow: tuple[Stack, Process], accept: str) -> None:
    """Whole or streamed: nobody computes for somebody who has gone."""
    stack, bridge = slow
    host, port = address_of(bridge).split(":")
    head = f"POST /infer HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\ncontent-length: {len(LONG)}\r\n\r\n"
    with stack.client() as client:
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(head.encode() + LONG)
            eventually(lambda: client.status().running == 1, what="a running request")

        assert eventually(lambda: client.status().running == 0, within_s=5, what="a free slot")


def test_a_bridge_that_is_told_to_leave_finishes_what_runs(slow: tuple[Stack, Process]) -> None:
    """Then it ends with 0."""
    stack, _ = slow
    bridge = stack.bridge()
    got: list[int] = []
    body = json.dumps({"prompt": "hi", "max_tokens": 10}).encode()
    asking = threading.Thread(target=lambda: got.append(answer_of(bridge, "/infer", body)[0]))
    asking.start()
    with stack.client() as client:
        eventually(lambda: client.status().running == 1, what="a running request")
    bridge.signal(signal.SIGTERM)
    asking.join()

    assert got == [200]
    assert bridge.wait() == 0


def test_out_of_time_is_504_and_not_to_be_repeated(slow: tuple[Stack, Process]) -> None:
    """The OpenAI SDK would send it twice more."""
    bridge = slow[0].bridge("--request-timeout", "500ms")
    status, answer, headers = answer_of(bridge, "/infer", LONG)

    assert status == 504
    assert answer["reason"] == "deadline_exceeded"
    assert headers["x-should-retry"] == "false"


def test_without_a_node_it_is_503_with_a_time_to_come_back() -> None:
    """Alive, but not ready; and it says what is missing."""
    with Stack() as stack:
        stack.broker()
        bridge = stack.bridge()
        ready, health, _ = answer_of(bridge, "/readyz")
        status, answer, headers = answer_of(bridge, "/infer", b'{"prompt": "hi"}')

        assert (ready, health["status"]) == (503, "no_nodes")
        assert answer_of(bridge, "/livez")[0] == 200
        assert status == 503, answer
        assert int(headers["retry-after"]) >= 1


def test_a_node_that_loads_is_not_ready_yet() -> None:
    """The probe tells the phase, and how far it is."""
    with Stack() as stack:
        stack.broker()
        bridge = stack.bridge()
        words = ("--broker", stack.workers, "--engine", "mock", "--engine-opt", "load_s=5")
        stack.processes.append(start("worker", *words, wait=False))

        loading = eventually(lambda: starting(bridge), what="the phase of a node that loads")
        assert loading["phase"] in ("starting", "loading")
        assert not loading["ready"]
        assert eventually(lambda: answer_of(bridge, "/readyz")[0] == 200, what="ready")


def starting(bridge: Process) -> dict[str, Any] | None:
    """Return the health of a fleet that is starting; None before and after."""
    status, health, _ = answer_of(bridge, "/health")
    return health if status == 503 and health["status"] == "starting" else None


def test_keys_of_http_and_keys_of_the_wire(tmp_path: Path) -> None:
    """The bridge is a client with a key; its callers have keys of their own."""
    keys = tmp_path / "keys"
    generate(keys)
    with Stack() as stack:
        stack.broker("--keys", str(keys))
        stack.worker("--keys", str(keys))
        bridge = stack.bridge("--keys", str(keys), "--api-keys", "acme:s3cret")
        with Client(stack.clients, keys=keys) as client:
            eventually(lambda: client.status().ready, what="a node")

        assert answer_of(bridge, "/infer", b'{"prompt": "hi"}')[0] == 401
        assert answer_of(bridge, "/infer", b'{"prompt": "hi"}', Authorization="Bearer s3cret")[0] == 200


def test_a_busy_port_is_one_sentence() -> None:
    """And exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bridge = start("bridge_http", "--port", str(taken.getsockname()[1]), wait=False)

        assert bridge.wait() == 1
        eventually(lambda: "is in use by another process" in bridge.output(), what="the sentence")
        assert "Traceback" not in bridge.output()
