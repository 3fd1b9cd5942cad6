"""Streams of vLLM outlive its processes: two nodes of SmolLM2 in the environment of VLLM_PYTHON (`make test-vllm`)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator

import psutil
import pytest

from support.stack import Process, Stack, eventually
from zmqrt.client import CancelledError, Client

PYTHON = os.environ.get("VLLM_PYTHON", "")
TOKENS = 32
STREAMS = 32
SLOTS = STREAMS // 2
ENV = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
"""Without the second vLLM calls a C++ compiler at its first step, for minutes."""
START_S = 1500.0
"""vLLM takes minutes to get ready on two cores, and here two of them do."""


def why_not() -> str:
    """Say why there is no vLLM here."""
    if not PYTHON:
        return "VLLM_PYTHON names no Python of an environment with zmqrt[vllm]"
    look = "from importlib.util import find_spec as f; raise SystemExit(not (f('vllm') and f('zmqrt.worker')))"
    found = subprocess.run([PYTHON, "-c", look], check=False, capture_output=True)
    return "" if found.returncode == 0 else f"{PYTHON} has no vllm, or no zmqrt"


pytestmark = [pytest.mark.e2e, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Stack]:
    """Two nodes that serve SmolLM2 by vLLM on the CPU."""
    if reason := why_not():
        pytest.skip(reason)
    with Stack() as stack:
        stack.broker()
        for number in range(2):
            options = ("enforce_eager=1", "max_num_batched_tokens=512")
            words = [word for option in options for word in ("--engine-opt", option)]
            words += ["--device", "cpu", "--dtype", "float32", "--max-model-len", "512", "--slots", str(SLOTS)]
            words += ["--stall-timeout", "300s"]  # a busy machine is no hang
            stack.worker(*words, engine="vllm", node_id=f"node-{number}", python=PYTHON, env=ENV, wait=False)
        try:
            stack.wait_for_nodes(2, within_s=START_S)
            yield stack
        finally:
            print(*(process.output() for process in stack.processes), sep="\n")  # shown with a failure


class Telling:
    """One stream, read on a thread of its own. Its first half is greedy, the other one sampled."""

    def __init__(self, client: Client, number: int, tokens: int = TOKENS) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.is_greedy = number % 2 == 0
        self._tokens = tokens
        self._handle = client.submit(
            f"Tell me story number {number} about the sea.",
            stream=True,
            max_tokens=tokens,
            seed=number,
            temperature=0.0 if self.is_greedy else 0.9,
            ignore_eos=True,
            timeout_s=600,
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(CancelledError):
            while (chunk := self._handle.next_chunk()) is not None:
                assert chunk.index == len(self.ids), "a gap, or a repeat"
                self.ids += chunk.token_ids
                self.text += chunk.text

    def end(self) -> tuple[list[int], str]:
        """Wait for its end; what came in pieces is the whole."""
        self._thread.join()
        result = self._handle.result()
        assert (self.ids, self.text) == (result.token_ids, result.text)
        assert len(self.ids) == self._tokens
        return self.ids, self.text

    def cancel(self) -> None:
        """Give it up."""
        self._handle.cancel()
        self._thread.join()  # one thread at a time reads it
        with pytest.raises(CancelledError):
            self._handle.result()


def busy_nodes(client: Client) -> set[str]:
    """Name the nodes that have work."""
    return {node.node_id for node in client.status().nodes if node.in_flight}


def processes_of_vllm(node: Process) -> list[psutil.Process]:
    """Return the processes that vLLM has started below the engine process of a node."""
    family = node.family()
    engines = [one for one in family if "zmqrt.worker.engines.process" in one.cmdline()]
    assert len(engines) == 1
    below: list[psutil.Process] = engines[0].children(recursive=True)
    return below


def kill(process: psutil.Process, others: list[psutil.Process]) -> None:
    """End it without a word; all these must be gone soon after."""
    process.kill()
    _, left = psutil.wait_procs([process, *others], timeout=30)
    assert left == []


def test_a_cancelled_stream_frees_its_slot(fleet: Stack) -> None:
    """All slots of both nodes are taken, and one more waits; it runs as soon as others are cancelled."""
    with fleet.client() as client:
        running = [Telling(client, number, tokens=400) for number in range(STREAMS)]
        eventually(lambda: all(one.ids for one in running), within_s=300, what="that all slots are taken")
        waiting = Telling(client, STREAMS, tokens=8)
        before = [len(one.ids) for one in running]
        eventually(
            lambda: all(len(one.ids) > begun + 2 for one, begun in zip(running, before, strict=True)),
            within_s=300,
            what="further steps",
        )
        assert waiting.ids == []

        for _ in range(SLOTS + 1):  # so many are not all on the other node
            running.pop().cancel()
        waiting.end()
        assert any(len(one.ids) < 400 for one in running), "they ended by themselves"
        for one in running:
            one.cancel()
        eventually(lambda: busy_nodes(client) == set(), what="that nobody works for nobody")


def test_streams_outlive_the_process_in_which_vllm_computes(fleet: Stack) -> None:
    """`kill -9` of its EngineCore under 32 streams: none is lost, greedy ones are those of the undisturbed run."""
    with fleet.client() as client:
        undisturbed = [one.end() for one in [Telling(client, number) for number in range(STREAMS)]]
        told = [Telling(client, number) for number in range(STREAMS)]
        eventually(lambda: all(len(one.ids) >= 4 for one in told), within_s=300, what="the beginnings")
        assert busy_nodes(client) == {"node-0", "node-1"}
        assert all(len(one.ids) < TOKENS for one in told), "they ended before the test began"
        below = processes_of_vllm(fleet.node("node-0"))
        (core,) = (one for one in below if "EngineCore" in " ".join(one.cmdline()))
        begun = [list(one.ids) for one in told]
        kill(core, below)
        ended = [one.end() for one in told]
        resumed = client.status().counters["resumes"]

    changed = sum(ids != right for (ids, _), (right, _) in zip(ended, undisturbed, strict=True))
    print(f"{resumed} of {STREAMS} streams resumed; {changed} sampled ones went on otherwise")
    for one, before, (ids, text), right in zip(told, begun, ended, undisturbed, strict=True):
        assert ids[: len(before)] == before
        assert not one.is_greedy or (ids, text) == right
    assert resumed >= STREAMS // 4


def test_nothing_of_vllm_outlives_an_engine_process(fleet: Stack) -> None:
    """`kill -9` of ours: what vLLM has started holds no memory any longer."""
    below = processes_of_vllm(fleet.node("node-1"))
    engine = below[0].parent()
    assert engine is not None
    kill(engine, below)


def test_nothing_of_vllm_outlives_its_node(fleet: Stack) -> None:
    """`kill -9` of the agent: the engine process ends with it, and what vLLM has started with that."""
    node = fleet.node("node-0")
    _, *below = node.family()
    node.kill()  # and takes note of its end, which is ours to do

    _, left = psutil.wait_procs(below, timeout=30)
    assert left == []
