"""/metrics of a broker and of a worker by themselves: on loopback, if asked for, while the loop goes on."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.stack import Process, Stack, eventually, start

pytestmark = pytest.mark.e2e
DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def scrape(process: Process) -> dict[str, float]:
    """Read all samples by name and labels."""
    with urllib.request.urlopen(process.endpoints["metrics"], timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {f"{one.name}{sorted(one.labels.values())}": one.value for family in families for one in family.samples}


def names(samples: dict[str, float]) -> set[str]:
    """Return the names of families, as the documentation has them."""
    return {re.sub(r"_(bucket|sum|count)$", "", key.partition("[")[0]) for key in samples}


def test_broker_and_worker_tell_about_themselves() -> None:
    """The broker about the fleet, the worker about its own node; with documented names only."""
    with Stack() as stack:
        broker = stack.broker("--metrics-port", "0")
        worker = stack.worker(
            "--metrics-port", "0", "--devices", "mock:0", "--engine-opt", "step_ms=1", node_id="node-0"
        )
        stack.wait_for_nodes(1)
        with stack.client() as client:
            client.infer("hi", max_tokens=5, ignore_eos=True)
        fleet = eventually(
            lambda: told if (told := scrape(broker)).get("zmqrt_engine_tokens_total['mock:0', 'node-0']", 0) else None
        )
        node = scrape(worker)

    assert fleet["zmqrt_generation_tokens_total['mock']"] == 5
    assert fleet["zmqrt_worker_up['node-0']"] == node["zmqrt_worker_up['node-0']"] == 1
    assert node["zmqrt_worker_brokers['node-0']"] == 1
    assert "zmqrt_broker_requests_total[]" not in node
    documented = set(re.findall(r"`(zmqrt_\w+)`", DOCS))
    assert names(fleet) | names(node) <= documented


def test_metrics_are_told_to_callers_that_meant_this_machine() -> None:
    """A page in a browser may have made its own name point here; its Host says so."""
    with Stack() as stack:
        url = stack.broker("--metrics-port", "0").endpoints["metrics"]
        port = url.split(":")[2].split("/")[0]
        for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", f"LOCALHOST.:{port}", f"[::1]:{port}"):
            request = urllib.request.Request(url, headers={"host": host})
            assert urllib.request.urlopen(request, timeout=10).status == 200
        for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example", "a b"):
            request = urllib.request.Request(url, headers={"host": host})
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            assert refused.value.code == 403
            assert b"zmqrt_" not in refused.value.read()


def test_a_broker_whose_loop_stands_still_is_told_as_down() -> None:
    """Rather than the scrape hanging, or telling what was."""
    with Stack() as stack:
        broker = stack.broker("--metrics-port", "0")
        assert scrape(broker)["zmqrt_broker_up[]"] == 1
        broker.signal(signal.SIGSTOP)
        with pytest.raises((TimeoutError, urllib.error.URLError)):
            urllib.request.urlopen(broker.endpoints["metrics"], timeout=0.5)
        broker.signal(signal.SIGCONT)
        assert eventually(lambda: scrape(broker)["zmqrt_broker_up[]"]) == 1


@pytest.mark.parametrize("role", ["broker", "worker"])
def test_a_port_that_is_taken_is_one_clear_sentence(role: str) -> None:
    """With what to do; and without the flag nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = {
            "broker": ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0"),
            "worker": ("--engine", "mock", "--broker", "tcp://127.0.0.1:1"),
        }[role]
        process = start(role, *arguments, "--metrics-port", str(taken.getsockname()[1]), wait=False)
        try:
            code = process.wait()
        finally:
            process.stop()
    assert code == 1
    assert "choose another --metrics-port" in eventually(process.output)
    assert "Traceback" not in process.output()


def test_logs_say_what_happened_to_whom() -> None:
    """As JSON, with the node, and with the request that moved."""
    with Stack() as stack:
        broker = stack.broker()
        for number in range(2):
            stack.worker("--engine-opt", "step_ms=10,eos=never", node_id=f"node-{number}")
        stack.wait_for_nodes(2)
        with stack.client() as client:
            handle = client.submit("hi", max_tokens=100, stream=True, request_id="job-7")
            handle.next_chunk()
            (story,) = client.explain(handle.rid.hex())
            node = story.attempts[0].node
            stack.node(node).kill()
            handle.result()
        lines = [json.loads(line) for line in broker.lines if '"level"' in line]
        worker_lines = [json.loads(line) for line in stack.node("node-0").lines if '"level"' in line]

    moved = next(line for line in lines if "go on elsewhere" in line["message"])
    assert (moved["level"], moved["worker_id"]) == ("warning", node)
    assert (moved["request_id"], moved["rid"]) == ("job-7", handle.rid.hex())
    assert {line["worker_id"] for line in lines if " joined" in line["message"]} == {"node-0", "node-1"}
    assert {line["worker_id"] for line in worker_lines} == {"node-0"}
