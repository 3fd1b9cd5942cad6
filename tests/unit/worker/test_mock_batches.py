"""The mock's engines of batches: what a text gets depends on that text alone, and what is wrong is said of one item."""

from __future__ import annotations

from typing import Any

import pytest

from zmqrt.protocol import tasks
from zmqrt.worker.engines.base import Item, ItemResult
from zmqrt.worker.engines.mock_batches import (
    LABELS,
    MockBatchEngine,
    MockBatches,
    MockClassifier,
    MockEmbedder,
    MockReranker,
    class_probabilities,
    relevance,
)

SHORT = MockBatches(context=12)


def answer(engine: MockBatchEngine, task: dict[str, Any]) -> ItemResult:
    """Run one item alone."""
    (result,) = engine.run([Item(ticket=1, task=task, length=1)])
    return result


def body_of(engine: MockBatchEngine, task: dict[str, Any]) -> dict[str, Any]:
    """Run one item that must be answered."""
    body = answer(engine, task).body
    assert body is not None
    return body


def test_vectors_are_unit_and_depend_on_the_text_alone() -> None:
    """The same text has the same vector in any batch."""
    engine = MockEmbedder("m", SHORT, dim=8)

    alone = body_of(engine, {"input": "a"})
    beside = body_of(engine, {"input": ["b", "a"]})

    assert beside["vectors"]["data"].endswith(alone["vectors"]["data"])
    assert beside["vectors"]["shape"] == [2, 8]


def test_scores_are_in_the_order_of_the_documents() -> None:
    """None is left out, and each is what anybody can compute."""
    documents = ["Red cars", "a green car", "CAR red", ""]
    body = body_of(MockReranker("m", SHORT), {"query": "red car", "documents": documents})

    assert body["scores"] == [0.5, 0.5, 1.0, 0.0] == [relevance(b"red car", one.encode()) for one in documents]
    assert tasks.check(body, tasks.RerankResult).usage.prompt_tokens == 4 * 7 + sum(map(len, documents))


def test_probabilities_are_of_all_labels_and_sum_to_one() -> None:
    """A row for each input."""
    body = body_of(MockClassifier("m", SHORT), {"input": ["a", "b"]})

    assert body["probabilities"] == [class_probabilities(b"a"), class_probabilities(b"b")]
    assert [sum(row) for row in body["probabilities"]] == pytest.approx([1.0, 1.0])
    assert tuple(tasks.check(body, tasks.ClassifyResult).labels) == LABELS


@pytest.mark.parametrize(
    ("engine", "task", "words"),
    [
        (MockEmbedder("m", SHORT), {"input": ["a", "x" * 13]}, "your input resulted in 13 tokens"),
        (MockReranker("m", SHORT), {"query": "q", "documents": ["x" * 13]}, "your documents resulted in 13 tokens"),
        (MockReranker("m", SHORT), {"query": "x" * 13, "documents": ["a"]}, "your query resulted in 13 tokens"),
        (MockClassifier("m", SHORT), {"input": "x" * 13}, "your input resulted in 13 tokens"),
    ],
)
def test_what_is_too_long_is_refused_unless_it_may_be_cut(
    engine: MockBatchEngine, task: dict[str, Any], words: str
) -> None:
    """By its field; a query is never cut, for every document would be judged by another one."""
    refused = answer(engine, task)
    assert (refused.body, refused.refused) == (None, "context_length_exceeded")
    assert words in (refused.error or "")

    cut = answer(engine, {**task, "truncate": True})
    assert (cut.body is None) == ("query" in words)


def test_a_text_may_be_told_to_fail() -> None:
    """The whole batch raises, as a model would, and the batcher finds which item it was."""
    engine = MockReranker("m", MockBatches(fail_on="boom"))

    with pytest.raises(ValueError, match="told to fail by 'boom'"):
        answer(engine, {"query": "q", "documents": ["fine", "a boom"]})
