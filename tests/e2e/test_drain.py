"""`zmqrt drain`: a node finishes what it runs, takes nothing more, and leaves; nobody notices but its operator."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import zmqrt
from support.stack import Stack, eventually, running
from support.streams import Expected, ask_streams, ids_of
from zmqrt.client import Client, NotFoundError
from zmqrt.protocol.keys import generate

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
PACE = ("--engine-opt", "step_ms=20", "--devices", "mock:0")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """Two brokers, and three nodes that serve both; two tests drain one node each."""
    with Stack() as stack:
        stack.broker("--broker-id", "first")
        stack.second_broker("--broker-id", "second")
        for number in range(3):
            stack.worker(*PACE, node_id=f"node-{number}")
        stack.wait_for_nodes(3)
        yield stack


def test_a_name_that_nobody_has_is_2_with_the_names_there_are(fleet: Stack) -> None:
    """In the library it is NotFoundError."""
    result = zmqrt("drain", "node-7", "--broker", fleet.clients)

    assert result.returncode == 2
    assert "no node is called 'node-7'; there are: node-0, node-1, node-2" in result.stderr
    with fleet.client() as client, pytest.raises(NotFoundError, match="node-0, node-1, node-2"):
        client.drain("node-7")


def test_a_node_finishes_what_it_runs_and_leaves(fleet: Stack) -> None:
    """Asked through both brokers: exit 0 of the command and of the node, all streams as ever, new work elsewhere."""
    expected = [Expected(seed=n, tokens=150) for n in range(20)]
    with fleet.client() as client:
        handles = ask_streams(client, expected)
        assert all(handle.next_chunk() is not None for handle in handles)
        eventually(lambda: all(node.in_flight for node in client.status().nodes), what="busy nodes")
        assert client.status().counters["completed"] == 0
        drained = zmqrt("drain", "node-0", "--broker", fleet.clients, "--json")

        assert drained.returncode == 0, drained.stderr
        told = json.loads(drained.stdout)
        assert told["is_gone"]
        assert any(broker["is_done"] for broker in told["brokers"])
        assert fleet.node("node-0").wait() == 0
        assert [ids_of(handle) for handle in handles] == [one.ids for one in expected]
        assert {node.node_id for node in client.status().nodes} == {"node-1", "node-2"}
        assert client.infer("after", max_tokens=1, model="mock").usage.completion_tokens == 1
        assert client.status().counters["redispatches"] == 0


def test_without_waiting_the_command_is_back_while_the_node_still_works(fleet: Stack) -> None:
    """It has asked, and no more."""
    with fleet.client() as client:
        handle = client.submit("long", stream=True, max_tokens=200, ignore_eos=True, model="mock")
        assert handle.next_chunk() is not None
        busy = eventually(
            lambda: next((n.node_id for n in client.status().nodes if n.in_flight), ""), what="a busy node"
        )
        asked = zmqrt("drain", busy, "--broker", fleet.clients.split(",")[0], "--no-wait")

        assert not handle.done()
        assert (asked.returncode, asked.stderr) == (0, "")
        assert "draining" in asked.stdout
        assert len(handle.result().token_ids) == 200
        assert fleet.node(busy).wait() == 0


def test_whoever_is_no_admin_gets_77(tmp_path: Path) -> None:
    """And the node stays."""
    keys = tmp_path / "keys"
    generate(keys)
    listed = keys / "authorized_clients"
    listed.write_text(listed.read_text(encoding="utf-8").replace(" admin", ""), encoding="utf-8")
    with Stack() as stack:
        stack.broker("--keys", str(keys))
        stack.worker("--keys", str(keys), node_id="keyed")
        with Client(stack.clients, keys=keys) as client:
            eventually(lambda: client.status().ready, what="a node")
            result = zmqrt("drain", "keyed", "--broker", stack.clients, "--keys", str(keys))

            assert result.returncode == 77, result.stderr
            assert "not an admin" in result.stderr
            assert [node.health for node in client.status().nodes] == ["active"]


@pytest.mark.slow
def test_a_node_that_froze_is_waited_for_until_it_is_forgotten() -> None:
    """It cannot answer, so its work goes elsewhere and the broker gives it up; then the command ends too."""
    with running(nodes=2, broker=("--heartbeat-interval", "0.5", "--node-eviction-timeout", "5")) as stack:
        frozen = stack.node("node-0")
        with stack.client() as client:
            frozen.signal(signal.SIGSTOP)
            result = zmqrt("drain", "node-0", "--broker", stack.clients)

            assert (result.returncode, result.stderr) == (0, "")
            assert "node-0 has left" in result.stdout
            assert [node.node_id for node in client.status().nodes] == ["node-1"]
