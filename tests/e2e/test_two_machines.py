"""Two machines: broker and bridge on one, a node on the other that joined by one line, a caller that has only HTTP.

The machines are network namespaces with a cable between them; it takes root to make those.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.stack import Process, eventually, start

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
HERE, THERE = "10.213.77.1", "10.213.77.2"
LISTENING = "0A"
KEY = "team:correct-horse-battery"
ASK = """
import json, sys, urllib.error, urllib.request
body = json.dumps({"prompt": "hi", "max_tokens": 4}).encode()
headers = {"Content-Type": "application/json", **({"X-API-Key": sys.argv[2]} if len(sys.argv) > 2 else {})}
try:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], body, headers), timeout=60) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""
GREET = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as plain:
    plain.settimeout(2)
    plain.sendall(b"\\xff" + bytes(8) + b"\\x7f\\x03\\x00")
    said = b""
    try:
        while len(said) < 32:
            said += plain.recv(64)
    except OSError:
        pass
print(said[12:32].rstrip(bytes(1)).decode("latin-1"))
"""


@dataclass
class Machine:
    """A namespace, and an interpreter that runs there."""

    name: str
    address: str
    python: str
    house: Path

    @property
    def env(self) -> dict[str, str]:
        """Surroundings of its own."""
        return {"XDG_CONFIG_HOME": str(self.house)}

    def run(self, code: str, *arguments: str) -> str:
        """Run a program of three lines that knows nothing of zmqrt."""
        words = [self.python, "-I", "-c", code, *arguments]
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def ip(*words: str) -> None:
    """Set the network up."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine]]:
    """Make two, and a cable."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("it takes root, and Linux, to make namespaces")
    made: list[Machine] = []
    ends = [f"zq{os.getpid() % 100_000}{side}" for side in "ab"]
    try:
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    except subprocess.CalledProcessError:
        pytest.skip("namespaces cannot be made here")
    with contextlib.ExitStack() as held:
        for end, address in zip(ends, (HERE, THERE), strict=True):
            name, folder = f"ns-{end}", tmp_path_factory.mktemp("machine")
            ip("netns", "add", name)
            held.callback(ip, "netns", "del", name)
            ip("link", "set", end, "netns", name)
            for words in (("addr", "add", f"{address}/24", "dev", end), ("link", "set", end, "up")):
                ip("-n", name, *words)
            ip("-n", name, "link", "set", "lo", "up")
            python = folder / "python"
            python.write_text(f'#!/bin/sh\nexec ip netns exec {name} {sys.executable} "$@"\n')
            python.chmod(0o755)
            made.append(Machine(name, address, str(python), folder))
        yield made[0], made[1]


@pytest.fixture(scope="module")
def fleet(machines: tuple[Machine, Machine]) -> Iterator[list[Process]]:
    """Three commands: the broker prints a line, the node joins by it; and a bridge for those that install nothing."""
    here, there = machines
    processes: list[Process] = []
    try:
        broker = start("broker", "--print-join", "--advertise", HERE, env=here.env, python=here.python)
        processes.append(broker)
        said = eventually(lambda: [line for line in broker.lines if '"event": "join"' in line], what="the lines")
        lines = json.loads(said[0])
        worker = ("--engine", "mock", "--devices", "0", "--node-id", "far")
        env = {**there.env, "ZMQRT_JOIN": lines["zmqrt-worker"]}
        processes.append(start("worker", *worker, env=env, python=there.python))
        keys = str(here.house / "zmqrt" / "fleet-keys")
        bridge = ("--keys", keys, "--broker", f"tcp://{HERE}:7555", "--host", HERE, "--port", "8000")
        processes.append(start("bridge_http", *bridge, env={**here.env, "API_KEYS": KEY}, python=here.python))
        yield processes
    finally:
        for process in reversed(processes):
            process.stop()


def test_a_caller_with_http_alone_is_answered_by_a_node_on_another_machine(
    machines: tuple[Machine, Machine], fleet: list[Process]
) -> None:
    """The standard library of any Python, no keys of ours but the API key; without that, a 401."""
    assert fleet
    _, there = machines
    url = f"http://{HERE}:8000/infer"

    def answer() -> str:
        said = there.run(ASK, url, KEY.partition(":")[2])
        return said if said.startswith("200 ") else ""

    assert '"text"' in eventually(answer, what="an answer", within_s=60)
    assert there.run(ASK, url).startswith("401 ")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_a_shell_is_all_that_a_caller_needs(machines: tuple[Machine, Machine], fleet: list[Process]) -> None:
    """It fetches its client from the bridge, and asks by it, with the API key and nothing else."""
    assert fleet
    _, there = machines
    url, script = f"http://{HERE}:8000", there.house / "client.sh"
    within = ("ip", "netns", "exec", there.name)
    subprocess.run([*within, "curl", "-fsS", "-o", str(script), f"{url}/client.sh"], check=True, timeout=60)
    env = {"PATH": os.environ["PATH"], "ZMQRT_URL": url, "ZMQRT_API_KEY": KEY.partition(":")[2]}
    words = [*within, "sh", str(script), "--max-tokens", "4", "hi"]
    asked = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.strip()


def listening_off_loopback(pid: int) -> Iterator[int]:
    """Yield what listens on the machine of a process: IPv4 and IPv6 as the kernel has them, in hex."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            address, port = line.split()[1].split(":")
            is_loopback = address.endswith("7F") or address == "0" * 24 + "01000000"
            if line.split()[3] == LISTENING and not is_loopback:
                yield int(port, 16)


def test_nothing_listens_off_loopback_that_asks_for_no_key(
    machines: tuple[Machine, Machine], fleet: list[Process]
) -> None:
    """On either machine: two ports of the broker that speak CURVE, the bridge's, and no other."""
    here, there = machines
    listeners = {port for process in fleet for port in listening_off_loopback(process.pid)}

    assert listeners == {7555, 7556, 8000}
    for port in (7555, 7556):
        assert there.run(GREET, HERE, str(port)) == "CURVE"
    refused = subprocess.run(
        [here.python, "-m", "zmqrt.broker", "--clients", "tcp://0.0.0.0:7655", "--workers", "tcp://0.0.0.0:7656"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 78
    assert "no keys are set" in refused.stderr
