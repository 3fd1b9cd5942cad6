"""Reranking, classifying and embedding from a shell and by other people's clients, against a real fleet of the mock."""

from __future__ import annotations

import importlib.util
import json
import re
from array import array
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from support.http import asked
from support.stack import Process, Stack, running
from zmqrt.client.cli.main import cli
from zmqrt.worker.engines.mock_batches import LABELS, class_probabilities, unit_vector

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
DOCUMENTS = ["a green car", "Red cars", "the red car", "nothing"]
BEST = [(2, 1.0), (0, 0.5), (1, 0.5), (3, 0.0)]
needs_cohere = pytest.mark.skipif(importlib.util.find_spec("cohere") is None, reason="needs the package cohere")


@pytest.fixture(scope="module")
def fleet() -> Generator[tuple[Stack, Process]]:
    """One node and a bridge."""
    with running(worker=("--engine-opt", "fail_on_prompt=sulk", "--max-model-len", "100")) as stack:
        yield stack, stack.bridge()


# --- other people's clients ------------------------------------------------------------------------------------------


@needs_cohere
@pytest.mark.slow
def test_cohere_s_clients_rerank_as_they_are(fleet: tuple[Stack, Process]) -> None:
    """Both of its APIs; the document comes back where the older one asks for it."""
    cohere: Any = importlib.import_module("cohere")
    ask: dict[str, Any] = {"model": "mock-rerank", "query": "red car", "documents": DOCUMENTS}
    url = fleet[1].endpoints["http"]
    with cohere.ClientV2("any", base_url=url) as client:
        answer = client.rerank(**ask)
        first = client.rerank(**ask, top_n=1)
    with cohere.Client("any", base_url=url) as older:
        with_text = older.rerank(**ask, return_documents=True)

    assert [(one.index, one.relevance_score) for one in answer.results] == BEST
    assert [one.index for one in first.results] == [2]
    assert answer.meta.tokens.input_tokens > 0
    assert [one.document.text for one in with_text.results] == [DOCUMENTS[index] for index, _ in BEST]


@needs_cohere
@pytest.mark.slow
def test_cohere_s_client_raises_its_own_errors(fleet: tuple[Stack, Process]) -> None:
    """With our words in their body."""
    cohere: Any = importlib.import_module("cohere")
    with cohere.ClientV2("any", base_url=fleet[1].endpoints["http"]) as client:
        with pytest.raises(cohere.NotFoundError, match="no model"):
            client.rerank(model="other", query="q", documents=["a"])
        with pytest.raises(cohere.BadRequestError, match="serves the task 'generate', not 'rerank'"):
            client.rerank(model="mock", query="q", documents=["a"])


def test_the_only_model_for_a_task_need_not_be_named(fleet: tuple[Stack, Process]) -> None:
    """By HTTP as natively."""
    bridge = fleet[1]
    with asked(bridge, "POST", "/rerank", {"query": "red car", "documents": DOCUMENTS, "top_n": 2}) as answer:
        ranked = json.load(answer)
    with asked(bridge, "POST", "/v1/classify", {"input": ["a", "b"]}) as answer:
        classes = json.load(answer)

    assert [(one["index"], one["relevance_score"]) for one in ranked["results"]] == BEST[:2]
    assert [one["probs"] for one in classes["data"]] == [class_probabilities(b"a"), class_probabilities(b"b")]
    assert classes["labels"] == list(LABELS)


# --- a shell ---------------------------------------------------------------------------------------------------------


def zmqrt(*words: str, given: str | None = None) -> Result:
    """Run a command in this process, as its shell would."""
    return CliRunner().invoke(cli, words, input=given)


def test_documents_are_sorted_in_a_shell(fleet: tuple[Stack, Process]) -> None:
    """Given as arguments, or by the line."""
    broker = ("--broker", fleet[0].clients)
    shown = zmqrt("rerank", "red car", *DOCUMENTS, *broker)
    best = zmqrt("rerank", "red car", "-n", "1", "--json", *broker, given="\n".join(DOCUMENTS))

    assert shown.stdout.splitlines() == [f"{score:.4f}  {DOCUMENTS[index]}" for index, score in BEST]
    assert json.loads(best.stdout) == {"index": 2, "score": 1.0, "document": "the red car"}


def test_texts_are_classified_in_a_shell(fleet: tuple[Stack, Process], tmp_path: Path) -> None:
    """One with all its labels; of a file the likeliest of each line."""
    broker = ("--broker", fleet[0].clients)
    file = tmp_path / "texts"
    file.write_text("a\nb\n", encoding="utf-8")
    shown = zmqrt("classify", "a", *broker)
    lines = zmqrt("classify", "--file", str(file), *broker)

    likely = sorted(zip(class_probabilities(b"a"), LABELS, strict=True), reverse=True)
    assert shown.stdout.splitlines() == [f"{probability:.4f}  {label}" for probability, label in likely]
    assert [line.rsplit("  ", 1)[-1] for line in lines.stdout.splitlines()] == ["a", "b"]
    assert lines.stdout.startswith(f"{likely[0][0]:.4f}  {likely[0][1]}  a\n")


def test_the_lines_of_a_file_become_vectors(fleet: tuple[Stack, Process], tmp_path: Path) -> None:
    """As numpy reads them, or as lines of JSON through a pipe."""
    broker = ("--broker", fleet[0].clients)
    texts = [f"text {number}" for number in range(100)]
    expected = [array("f", unit_vector(text.encode(), 8)) for text in texts]
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")
    saved = zmqrt("embed", str(tmp_path / "texts"), "-o", str(tmp_path / "out.npy"), "--dimensions", "8", *broker)
    piped = zmqrt("embed", "-", "--dimensions", "8", *broker, given="\n".join(texts))

    assert saved.exit_code == 0, saved.output
    assert "100 vectors of 8 numbers" in saved.stderr
    assert [array("f", row) for row in np.load(tmp_path / "out.npy")] == expected
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [(row["text"], array("f", row["embedding"])) for row in rows] == list(zip(texts, expected, strict=True))


@pytest.mark.parametrize(
    ("bad", "words", "code"),
    [("x" * 101, "line 40: This model's maximum context length is 100", 2), ("sulk", "line 40: .*told to fail", 1)],
)
def test_a_text_that_has_no_vector_is_named_by_its_line(
    fleet: tuple[Stack, Process], tmp_path: Path, bad: str, words: str, code: int
) -> None:
    """And no file is written: others would take it for whole."""
    texts = [f"text {number}" for number in range(60)]
    texts[39] = bad
    out = tmp_path / "out.npy"
    result = zmqrt("embed", "-", "-o", str(out), "--broker", fleet[0].clients, given="\n".join(texts))

    assert result.exit_code == code, result.output
    assert re.search(words, result.stderr)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """By its suffix; no broker is needed for that."""
    result = zmqrt("embed", "-", "-o", str(tmp_path / "out.csv"), given="a")

    assert result.exit_code == 2
    assert ".npy or .jsonl is meant" in result.stderr
