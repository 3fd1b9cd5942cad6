"""Two machines by one line each: a broker that prints them, a node and a client that know nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.cli import zmqrt
from support.stack import Process, eventually, start
from zmqrt.client import Client
from zmqrt.protocol.join_line import read_line

pytestmark = pytest.mark.e2e


@dataclass
class Joined:
    """A broker that was started with `--print-join`, its lines, and a node that joined by one."""

    house: Path
    lines: dict[str, str]
    processes: list[Process] = field(default_factory=list[Process])

    @property
    def keys(self) -> Path:
        """The broker's folder."""
        return self.house / "broker" / "zmqrt" / "fleet-keys"

    def env(self, name: str) -> dict[str, str]:
        """Return the surroundings of a machine of its own."""
        return {"XDG_CONFIG_HOME": str(self.house / name)}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Joined]:
    """Start them; what they listen on is loopback, for a test opens no port to others."""
    made = Joined(tmp_path_factory.mktemp("house"), {})
    ports = ("--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
    try:
        made.processes.append(start("broker", "--print-join", *ports, env=made.env("broker")))
        said = eventually(lambda: [x for x in made.processes[0].lines if '"event": "join"' in x], what="the lines")
        made.lines = json.loads(said[0])
        worker = ("--engine", "mock", "--devices", "0", "--node-id", "joined")
        env = {**made.env("node"), "ZMQRT_JOIN": made.lines["zmqrt-worker"]}
        made.processes.append(start("worker", *worker, env=env))
        yield made
    finally:
        for process in reversed(made.processes):
            process.stop()


def test_one_line_is_all_that_a_client_needs(fleet: Joined) -> None:
    """In a program, and as a command after `zmqrt join`; the broker has made the keys by itself."""
    line = fleet.lines["zmqrt"]
    with Client(join=line, timeout_s=60) as client:
        eventually(lambda: client.models() and client.models()[0].nodes, what="a node")
        assert len(client.infer("hi", max_tokens=4, ignore_eos=True).token_ids) == 4

    env = {**os.environ, **fleet.env("laptop")}
    joined = zmqrt("join", "-", env=env, given=line)
    assert joined.returncode == 0, joined.stderr
    asked = zmqrt("infer", "hi", "--max-tokens", "2", env=env)
    assert asked.returncode == 0, asked.stderr
    assert (fleet.keys / "authorized_workers").exists()


def test_the_lines_of_each_start_are_the_same_and_name_their_port(fleet: Joined) -> None:
    """Else each start would list more keys."""
    endpoints = fleet.processes[0].endpoints
    worker, client = read_line(fleet.lines["zmqrt-worker"]), read_line(fleet.lines["zmqrt"])

    assert (worker.role, worker.brokers) == ("worker", (endpoints["workers"],))
    assert (client.role, client.brokers) == ("client", (endpoints["clients"],))
    assert worker.peer_keys().own.public.decode() in (fleet.keys / "authorized_workers").read_text()
