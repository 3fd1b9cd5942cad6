"""What goes in and out of an encoder: texts to embed, documents to rank by a question, texts to classify.

Each task makes rows of its body, and the FINAL body of the numbers that the model computes for them.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, Protocol

from ..base import RequestRefusedError, Row, TaskName
from .text_rows import TextRows


class EncoderTask(Protocol):
    """One task."""

    name: TaskName

    def divide(self, task: dict[str, Any]) -> list[Row]:
        """Make the rows of a body. Raises what `TextRows` raises, and RequestRefusedError."""
        ...

    def unite(self, task: dict[str, Any], numbers: list[bytes]) -> dict[str, Any]:
        """Make the part of the FINAL body that is the task's own."""
        ...


class EmbedTask:
    """A vector for each text, of `width` numbers; of fewer where `dimensions` asks for that, of the same length."""

    name: TaskName = "embed"

    def __init__(self, texts: TextRows, *, width: int, context: int, is_normalised: bool) -> None:
        self._texts = texts
        self._width = width
        self._context = context
        self._is_normalised = is_normalised

    def divide(self, task: dict[str, Any]) -> list[Row]:
        """Make a row of each input; ids of tokens are taken as they are."""
        dimensions = task.get("dimensions") or self._width
        if dimensions > self._width:
            raise RequestRefusedError(f"dimensions: the model has {self._width}, not {dimensions}")
        cut_to = task.get("truncate_to") or (self._context if task.get("truncate") else None)
        given = task["input"]
        inputs: list[str | list[int]] = [given] if isinstance(given, str) else given
        texts = iter(self._texts.of_texts([text for text in inputs if isinstance(text, str)], "input", cut_to=cut_to))
        return [
            next(texts) if isinstance(one, str) else self._texts.of_ids(one, "input", cut_to=cut_to) for one in inputs
        ]

    def unite(self, task: dict[str, Any], numbers: list[bytes]) -> dict[str, Any]:
        """One row of numbers behind the other."""
        width = task.get("dimensions") or self._width
        rows = numbers if width == self._width else [self._shortened(row, width) for row in numbers]
        return {"vectors": {"dtype": "f4", "shape": [len(rows), width], "data": b"".join(rows)}}

    def _shortened(self, row: bytes, width: int) -> bytes:
        first = array("f", row)[:width]
        if not self._is_normalised:
            return first.tobytes()
        length = math.hypot(*first) or 1.0
        return array("f", (number / length for number in first)).tobytes()


class RerankTask:
    """A score between 0 and 1 for each document: how well it answers the query."""

    name: TaskName = "rerank"

    def __init__(self, texts: TextRows) -> None:
        self._texts = texts

    def divide(self, task: dict[str, Any]) -> list[Row]:
        """Make a row of each document, with the query before it."""
        is_cut = bool(task.get("truncate"))
        return self._texts.of_pairs(task["query"], task["documents"], "documents", is_cut=is_cut)

    def unite(self, task: dict[str, Any], numbers: list[bytes]) -> dict[str, Any]:  # noqa: ARG002 - all are returned
        """In the order of the documents."""
        return {"scores": [_sigmoid(array("f", row)[0]) for row in numbers]}


class ClassifyTask:
    """Probabilities of all labels for each text; of several that may hold at once if `is_multiple`."""

    name: TaskName = "classify"

    def __init__(self, texts: TextRows, *, labels: list[str], context: int, is_multiple: bool) -> None:
        self._texts = texts
        self._labels = labels
        self._context = context
        self._is_multiple = is_multiple

    def divide(self, task: dict[str, Any]) -> list[Row]:
        """Make a row of each text."""
        given = task["input"]
        cut_to = self._context if task.get("truncate") else None
        return self._texts.of_texts([given] if isinstance(given, str) else given, "input", cut_to=cut_to)

    def unite(self, task: dict[str, Any], numbers: list[bytes]) -> dict[str, Any]:  # noqa: ARG002 - all are returned
        """In the order of the texts and of the labels."""
        logits = [array("f", row) for row in numbers]
        shares = [[_sigmoid(one) for one in row] if self._is_multiple else _softmax(row) for row in logits]
        return {"labels": self._labels, "probabilities": shares}


def _sigmoid(logit: float) -> float:
    """In 64 bits: in 32 all that is above 17 would be equally good."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def _softmax(logits: array[float]) -> list[float]:
    most = max(logits)
    weights = [math.exp(logit - most) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
