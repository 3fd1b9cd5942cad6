"""Answers of rerankers and classifiers: the best first, and what is no answer is the node's fault."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import msgspec
import pytest

from zmqrt.client.response import ResponseReader
from zmqrt.client.scoring import Classification, RankedDocument, Ranking, read_classification, read_ranking
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import EngineError

RID = b"r" * 16
SAID: Any = {"usage": tasks.Usage(prompt_tokens=1, completion_tokens=0), "model": "m", "revision": "r"}


def outcome(reading: ResponseReader[Any], body: msgspec.Struct) -> Any:
    """Read one FINAL."""
    reading.feed(m.Final(RID, 0, {}, tasks.encode(body)))
    return reading.outcome()


def test_the_best_come_first_and_equals_in_their_order() -> None:
    """As many as are wanted; without a number all."""
    ranking: Ranking = outcome(read_ranking("id", 4), tasks.RerankResult(scores=[0.5, 0.9, 0.5, 0.1], **SAID))

    assert [(one.index, one.score) for one in ranking.best()] == [(1, 0.9), (0, 0.5), (2, 0.5), (3, 0.1)]
    assert ranking.best(2) == [RankedDocument(1, 0.9), RankedDocument(0, 0.5)]
    assert ranking.best(9) == ranking.best()


def test_labels_come_with_their_probabilities_the_likeliest_first() -> None:
    """For each input."""
    body = tasks.ClassifyResult(labels=["a", "b", "c"], probabilities=[[0.2, 0.7, 0.1], [0.5, 0.2, 0.3]], **SAID)
    found: Classification = outcome(read_classification("id", 2), body)

    assert [list(row.items()) for row in found.by_label()] == [
        [("b", 0.7), ("a", 0.2), ("c", 0.1)],
        [("a", 0.5), ("c", 0.3), ("b", 0.2)],
    ]


@pytest.mark.parametrize(
    ("reading", "body"),
    [
        (read_ranking("id", 2), tasks.RerankResult(scores=[0.5], **SAID)),
        (read_classification("id", 1), tasks.ClassifyResult(labels=["a", "b"], probabilities=[[1.0]], **SAID)),
        (read_classification("id", 2), tasks.ClassifyResult(labels=["a"], probabilities=[[1.0]], **SAID)),
        (read_ranking("id", 3), tasks.RerankResult(scores=[0.5, nan, 0.9], **SAID)),
        (read_classification("id", 1), tasks.ClassifyResult(labels=["a", "b"], probabilities=[[inf, nan]], **SAID)),
    ],
)
def test_too_few_numbers_or_none_at_all_are_the_nodes_fault(reading: ResponseReader[Any], body: msgspec.Struct) -> None:
    """Whoever counted on them would look at the wrong document; an order with NaN in it is none."""
    with pytest.raises(EngineError, match=r"the node answered .* \(request id\)"):
        outcome(reading, body)
