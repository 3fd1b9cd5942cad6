"""The bridge as a process: streams, probes, keys, and its own end."""

import signal
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from support.http import EVENTS, answer_of, asked, events_of
from support.stack import Process, Stack, eventually, running, start
from zmqrt.client import Client
from zmqrt.protocol.keys import generate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
SLOW = ("--engine-opt", "step_ms=200,eos=never")
ASK = {"prompt": "hi", "max_tokens": 10}


@pytest.fixture(scope="module")
def slow() -> Generator[tuple[Stack, Process]]:
    """A fleet that takes 200 ms a token, and a bridge to it."""
    with running(worker=SLOW) as stack:
        yield stack, stack.bridge()


def test_a_stream_comes_as_it_is_made_and_ends_with_the_v1_response(slow: tuple[Stack, Process]) -> None:
    """The joined pieces are its text."""
    with asked(slow[1], "POST", "/infer", {"prompt": "hi", "max_tokens": 4}, EVENTS) as answer:
        *events, end = events_of(answer)

    assert {event.name for event in events} == {"token"}
    assert end.name == "done"
    assert "".join(event.data["text"] for event in events) == end.data["text"]
    assert end.data["api_version"] == "v1"


def test_a_bridge_that_is_told_to_leave_finishes_what_runs(slow: tuple[Stack, Process]) -> None:
    """Then it ends with 0."""
    stack, _ = slow
    bridge = stack.bridge()
    got: list[int] = []
    asking = threading.Thread(target=lambda: got.append(answer_of(bridge, "POST", "/infer", ASK)[0]))
    asking.start()
    with stack.client() as client:
        eventually(lambda: client.status().running == 1, what="a running request")
    bridge.signal(signal.SIGTERM)
    asking.join()

    assert got == [200]
    assert bridge.wait() == 0


def test_without_a_node_and_while_one_loads_a_bridge_is_alive_but_not_ready() -> None:
    """The probe tells what is missing, or the phase."""
    with Stack() as stack:
        stack.broker()
        bridge = stack.bridge()
        ready, health, _ = answer_of(bridge, "GET", "/readyz")
        assert (ready, health["status"]) == (503, "no_nodes")
        assert answer_of(bridge, "GET", "/livez")[0] == 200

        words = ("--broker", stack.workers, "--engine", "mock", "--engine-opt", "load_s=5")
        stack.processes.append(start("worker", *words, wait=False))

        loading = eventually(lambda: starting(bridge), what="the phase of a node that loads")
        assert loading["phase"] in ("starting", "loading")
        assert not loading["ready"]
        assert eventually(lambda: answer_of(bridge, "GET", "/readyz")[0] == 200, what="ready")


def starting(bridge: Process) -> dict[str, Any] | None:
    """Return the health of a fleet that is starting; None before and after."""
    status, health, _ = answer_of(bridge, "GET", "/health")
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

        status, answer, headers = answer_of(bridge, "POST", "/infer", ASK)
        assert (status, answer["reason"], headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
        assert answer_of(bridge, "POST", "/infer", ASK, {"authorization": "Bearer s3cret"})[0] == 200


def test_a_busy_port_is_one_sentence() -> None:
    """And exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bridge = start("bridge_http", "--port", str(taken.getsockname()[1]), wait=False)

        assert bridge.wait() == 1
        eventually(lambda: "is in use by another process" in bridge.output(), what="the sentence")
        assert "Traceback" not in bridge.output()
