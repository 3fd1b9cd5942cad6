"""A conversation is computed once: its earlier turns are found in the pool of the node that had them."""

from __future__ import annotations

import pytest

from support.cli import zmqrt
from support.stack import Stack, eventually, running

pytestmark = pytest.mark.e2e


def reused(stack: Stack) -> int:
    """Return the tokens that were not computed, over all nodes."""
    return sum(device.reused_tokens for node in stack.status().nodes for device in node.devices)


def test_zmqrt_chat_has_its_earlier_turns_computed_once() -> None:
    """With three nodes to choose from: each turn finds what all turns before it have in common with it."""
    beats = ("--heartbeat-interval", "200ms", "--node-eviction-timeout", "10s")
    with running(nodes=3, worker=("--devices", "0"), broker=beats) as stack:
        words = "the quick brown fox " * 20
        lines = f"{words}\nand then?\nand then?\nand then?\n"
        said = zmqrt("chat", "--broker", stack.clients, "-n", "8", "-t", "0", given=lines)

        assert said.returncode == 0, said.stderr
        eventually(lambda: reused(stack) >= 3 * len(words), what="what was found in the pool")
        shown = zmqrt("status", "--broker", stack.clients).stdout
        assert "prefix hits" in shown
        hits = [device for node in stack.status().nodes for device in node.devices if device.reused_tokens]
        assert len(hits) == 1, "all turns at one node"
        assert (hits[0].prefix_hit_percent or 0) > 50
