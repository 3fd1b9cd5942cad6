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


@pytest.mark.slow
def test_a_slow_node_is_waited_for_as_long_as_it_gets_on(tmp_path: Path) -> None:
    """What waits inside an engine shows no progress: a part is given the time of those before it as well."""
    texts = TEXTS[:20]
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")
    with running(worker=("--engine-opt", "step_ms=700", "--batch-max-size", "1")) as stack:
        words = ("--batch", "1", "--timeout", "3", "--broker", stack.clients)
        with Running("embed", str(tmp_path / "texts"), "-o", str(tmp_path / "out.npy"), *words) as command:
            assert command.wait() == 0, command.lines

    assert len(np.load(tmp_path / "out.npy")) == len(texts)
