"""Prompts of every awkward length, beside streams that must not notice; and a killed engine, alone in its loss."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Self

import pytest

from support.stack import Stack, eventually, running
from zmqrt.client import BadRequestError, Client

pytestmark = pytest.mark.e2e
CONTEXT = 256


@pytest.fixture(scope="module")
def small_context() -> Iterator[Stack]:
    """Run one node with a small context and slow steps."""
    options = ("--max-model-len", str(CONTEXT), "--engine-opt", "step_ms=5", "--devices", "0,1")
    with running(worker=options) as stack:
        yield stack


class Background:
    """Eight streams that run while a test does something else."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lengths: list[int] = []
        self._threads = [threading.Thread(target=self._read, args=(n,)) for n in range(8)]
        self.started = threading.Barrier(9)

    def _read(self, number: int) -> None:
        count = 0
        with self._client.stream(f"stream {number}", max_tokens=100, model="mock", ignore_eos=True) as stream:
            for chunk in stream:
                if count == 0:
                    self.started.wait(30)
                count += len(chunk.token_ids)
        self._lengths.append(count)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        self.started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join(60)
        assert self._lengths == [100] * 8


@pytest.mark.parametrize("tokens", [1, CONTEXT - 1])
def test_a_prompt_that_leaves_room_is_answered(small_context: Stack, tokens: int) -> None:
    """One token, and one less than the context: answered, clamped to the room left."""
    with small_context.client() as client, Background(client):
        result = client.infer(token_ids=[65] * tokens, max_tokens=10, model="mock", ignore_eos=True)

    assert len(result.token_ids) == min(10, CONTEXT - tokens)
    assert result.finish_reason == "length"


@pytest.mark.parametrize("tokens", [0, CONTEXT, 2 * CONTEXT])
def test_a_prompt_without_tokens_or_room_is_refused(small_context: Stack, tokens: int) -> None:
    """Empty, as long as the context, twice as long: 400 with both numbers, and the streams go on."""
    with small_context.client() as client, Background(client), pytest.raises(BadRequestError) as caught:
        client.infer(token_ids=[65] * tokens, max_tokens=10, model="mock")

    assert str(tokens) in str(caught.value)
    assert tokens == 0 or str(CONTEXT) in str(caught.value)


def test_a_killed_engine_restarts_alone(small_context: Stack) -> None:
    """One of two engine processes dies by its pid: the other device, the node and the service go on."""
    agent = small_context.processes[1].pid
    victim = engine_pids(agent)[0]

    os.kill(victim, signal.SIGKILL)

    restarted = eventually(lambda: [d.restarts for d in small_context.status().nodes[0].devices] in ([1, 0], [0, 1]))
    assert restarted
    small_context.wait_for_nodes(1)
    eventually(lambda: all(d.phase == "ready" for d in small_context.status().nodes[0].devices))
    with small_context.client() as client:
        assert len(client.infer("again", max_tokens=3, model="mock", ignore_eos=True).token_ids) == 3
    assert victim not in engine_pids(agent)


def engine_pids(agent: int) -> list[int]:
    """List the engine processes of a node."""
    with open(f"/proc/{agent}/task/{agent}/children", encoding="ascii") as children:  # noqa: PTH123
        pids = [int(pid) for pid in children.read().split()]
    return [pid for pid in pids if b"zmqrt.worker.engines" in _command(pid)]


def _command(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as command:  # noqa: PTH123
        return command.read()
