"""`zmqrt up` with the mock engine: everything starts, answers on every way, and is gone afterwards."""

import json
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.cli import Running, zmqrt
from support.stack import eventually

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="ends it by signals"),
]


class Up:
    """`zmqrt up --mock` on free ports, once it serves."""

    def __init__(self, running: Running) -> None:
        self.running = running
        running.until(lambda line: line.startswith("Try, in another terminal"))
        told = dict(line.split(": ", 1) for line in running.lines if ": ready" in line)
        self.clients, self.workers = told["broker"].removeprefix("ready ").split(", ")
        self.http = told["bridge"].removeprefix("ready ")

    def ask(self) -> str:
        """Ask natively, through the command."""
        result = zmqrt("infer", "--broker", self.clients, "--temperature", "0", "--max-tokens", "8", "hi")
        assert result.returncode == 0, result.stderr
        return result.stdout


def test_every_way_leads_to_the_same_answer_and_nothing_is_left() -> None:
    """Natively, through the historic command, and as curl would; then Ctrl-C."""
    with Running("up", "--mock", "--port", "0") as running:
        up = Up(running)
        natively = up.ask()
        words = ("--url", up.http, "--prompt", "hi", "--temperature", "0", "--max-tokens", "8")
        historic = zmqrt("submit", *words)
        body = {"prompt": "hi", "temperature": 0, "max_tokens": 8}
        with urllib.request.urlopen(f"{up.http}/infer", json.dumps(body).encode(), timeout=30) as answer:
            over_http = json.load(answer)
        family = running.family()
        running.popen.send_signal(signal.SIGINT)

        assert running.wait() == 0
        assert natively.strip()
        assert historic.stdout == natively
        assert historic.stderr.startswith("request ")
        assert over_http["text"] + "\n" == natively
        assert len(family) >= 4
        assert running.nothing_is_left()


def test_nothing_is_left_of_one_that_is_killed() -> None:
    """Kill -9 tells nobody anything; the children notice."""
    with Running("up", "--mock", "--port", "0") as running:
        Up(running)
        running.family()
        running.popen.kill()

        eventually(running.nothing_is_left, what="the end of all children")


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One that goes on, for tests that leave it as it was."""
    with Running("up", "--mock", "--port", "0") as running:
        yield Up(running)


@pytest.mark.parametrize("role", ["zmqrt.broker", "zmqrt.worker", "zmqrt.bridge_http"])
def test_a_role_that_dies_comes_back(up: Up, role: str) -> None:
    """On the same ports, so that everybody finds it again."""
    running = up.running
    (victim,) = (process for process in psutil.Process(running.popen.pid).children() if role in process.cmdline())
    victim.kill()
    running.until(lambda line: "starting it again" in line)
    running.until(lambda line: line.endswith(": ready") or ": ready " in line)

    assert eventually(lambda: zmqrt("submit", "--url", up.http, "--prompt", "hi").returncode == 0, what="an answer")
    assert up.ask()


def test_two_nodes_show_in_the_status_to_whoever_has_the_keys(tmp_path: Path) -> None:
    """With two mock devices each. Keys that are not there are made, and keep everybody else out."""
    keys = tmp_path / "keys"
    with Running("up", "--mock", "--port", "0", "--nodes", "2", "--keys", str(keys)) as running:
        up = Up(running)
        assert f"made keys in {keys}" in running.lines
        assert "pass `--keys DIR`" in zmqrt("status", "--broker", up.clients).stderr

        def all_there() -> bool:
            status = json.loads(zmqrt("status", "--json", "--broker", up.clients, "--keys", str(keys)).stdout)
            nodes = status["nodes"]
            assert {node["node_id"] for node in nodes} == {"node-0", "node-1"}
            return sum(len(node["devices"]) for node in nodes) == 4 and all(node["capacity"] for node in nodes)

        eventually(all_there, what="two nodes with two devices each")
        shown = zmqrt("status", "--broker", up.clients, "--keys", str(keys)).stdout
        assert shown.count("mock") >= 4
        assert "active" in shown


def test_a_busy_port_is_named(up: Up) -> None:
    """And nothing else stays running."""
    port = up.http.rpartition(":")[2]
    second = zmqrt("up", "--mock", "--port", port, "--client-port", "0", "--worker-port", "0")

    assert second.returncode == 1
    assert f"http://127.0.0.1:{port} is in use by another process" in second.stderr
    third = zmqrt("up", "--mock", "--port", "0", "--client-port", up.clients.rpartition(":")[2])

    assert third.returncode == 1
    assert f"{up.clients} is in use by another process" in third.stderr
    assert "--port 0, which takes free ones" in third.stderr


def test_a_second_interrupt_stops_at_once() -> None:
    """Although a request would run for long."""
    with Running(
        "up", "--mock", "--port", "0", "--", "--engine-opt", "step_ms=500", "--engine-opt", "eos=never"
    ) as running:
        up = Up(running)
        with Running(
            "infer", "--broker", up.clients, "--stream", "--max-tokens", "400", "--timeout", "1h", "hi"
        ) as ask:
            eventually(lambda: busy(up.clients), what="a running request")
            running.family()
            running.popen.send_signal(signal.SIGINT)
            running.until(lambda line: line.startswith("finishing what runs"))
            running.popen.send_signal(signal.SIGINT)

            assert running.wait() == 130
            assert running.nothing_is_left()
            assert ask.popen.poll() is None or ask.popen.returncode != 0


def busy(clients: str) -> bool:
    """Say whether a request runs."""
    return bool(json.loads(zmqrt("status", "--json", "--broker", clients).stdout)["running"])
