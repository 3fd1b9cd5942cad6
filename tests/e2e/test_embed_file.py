"""Five thousand texts through two nodes, of which one is killed on the way: every vector is there, in its place."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest

from support.cli import Running
from support.stack import eventually, running
from zmqrt.worker.engines.mock_batches import unit_vector

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
TEXTS = [f"text {number} of many" for number in range(5000)]


@pytest.mark.slow
def test_the_order_is_kept_though_a_node_is_killed_half_way(tmp_path: Path) -> None:
    """What it had goes to the other one; the command does not even notice."""
    out = tmp_path / "out.npy"
    (tmp_path / "texts").write_text("\n".join(TEXTS), encoding="utf-8")
    with running(nodes=2, worker=("--engine-opt", "step_ms=40", "--batch-max-size", "4")) as stack:
        words = ("embed", str(tmp_path / "texts"), "-o", str(out), "--dimensions", "8", "--broker", stack.clients)
        with stack.client() as client, Running(*words) as command:

            def half() -> bool:
                done = client.status().counters["completed"] >= 150
                return done and any(node.node_id == "node-0" and node.in_flight for node in client.status().nodes)

            eventually(half, what="half of the work, and some of it on node-0")
            stack.node("node-0").kill()
            assert command.wait() == 0, command.lines
            counters = client.status().counters

    assert counters["nodes_lost"] == 1
    assert counters["redispatches"] > 0
    found = np.load(out)
    assert [array("f", row) for row in found] == [array("f", unit_vector(text.encode(), 8)) for text in TEXTS]
