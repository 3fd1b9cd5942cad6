"""The mock's engines of batches: vectors, relevance and classes that anybody can compute again, and no torch.

What they answer depends on each text alone, whatever stands beside it. Their tokens are those of the mock's text model:
bytes, and a few markers without text.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from ...protocol.errors import too_long
from .base import Capacity, Item, ItemResult, TaskName
from .mock_tokens import REVISION, VOCABULARY

LABELS: Final = ("negative", "neutral", "positive")
_MAX_DIM: Final = 4096
_Refusal = Literal["bad_request", "context_length_exceeded"]


class _RefusedError(Exception):
    """An item is at fault."""

    def __init__(self, refused: _Refusal, words: str) -> None:
        super().__init__(words)
        self.refused: _Refusal = refused


@dataclass(frozen=True, slots=True, kw_only=True)
class MockBatches:
    """How many items a batch has, and how long it takes; which text makes it fail, if any; how long a text may be."""

    size: int = 8
    step_s: float = 0.0
    fail_on: str = ""
    context: int = 8192


class MockBatchEngine:
    """What they share. A subclass answers one item."""

    revision: ClassVar[str] = REVISION
    task: ClassVar[TaskName]

    def __init__(self, model: str, batches: MockBatches) -> None:
        self._model = model
        self._batches = batches

    def run(self, items: list[Item]) -> list[ItemResult]:
        """Run a batch. Raises ValueError if it holds the text that was chosen to fail."""
        time.sleep(self._batches.step_s)
        return [self._result(item) for item in items]

    def capacity(self) -> Capacity:
        """Tell how much waits and runs at once: a batch that runs, and one that fills."""
        return Capacity(slots=8 * self._batches.size, context=self._batches.context, vocabulary=VOCABULARY)

    def close(self) -> None:
        """Nothing to free."""

    def _result(self, item: Item) -> ItemResult:
        try:
            answer, tokens = self._answer(item.task)
        except _RefusedError as error:
            return ItemResult(ticket=item.ticket, error=str(error), refused=error.refused)
        usage = {"prompt_tokens": tokens, "completion_tokens": 0}
        body = {**answer, "usage": usage, "model": self._model, "revision": REVISION}
        return ItemResult(ticket=item.ticket, body=body)

    def _answer(self, task: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Return the body without what all bodies have, and how many tokens were read. Raises _RefusedError."""
        raise NotImplementedError

    def _read(self, field: str, texts: Sequence[str | list[int]], most: int | None = None) -> list[Sequence[int]]:
        """Return the tokens of texts, at most so many of each; without a bound they have to fit the context."""
        context = self._batches.context
        inputs = [_tokens(text) for text in texts]
        if most is not None:
            inputs = [ids[: min(most, context)] for ids in inputs]
        longest = max(map(len, inputs))
        if longest > context:
            raise _RefusedError("context_length_exceeded", too_long(field, longest, context))
        fail_on = self._batches.fail_on.encode()
        if fail_on and any(fail_on in _spelled(ids) for ids in inputs):
            raise ValueError(f"told to fail by {self._batches.fail_on!r} in the input")
        return inputs

    def _most(self, task: dict[str, Any]) -> int | None:
        return self._batches.context if task.get("truncate") else None


class MockEmbedder(MockBatchEngine):
    """Unit vectors drawn from a hash of the text: equal texts have equal vectors."""

    task = "embed"

    def __init__(self, model: str, batches: MockBatches, *, dim: int = 64) -> None:
        super().__init__(model, batches)
        self._dim = dim

    def _answer(self, task: dict[str, Any]) -> tuple[dict[str, Any], int]:
        dim = task.get("dimensions") or self._dim
        if dim > _MAX_DIM:
            raise _RefusedError("bad_request", f"dimensions: {self._model} has {_MAX_DIM} at most, not {dim}")
        inputs = self._read("input", _several(task["input"]), task.get("truncate_to") or self._most(task))
        data = b"".join(unit_vector(_spelled(ids), dim) for ids in inputs)
        return {"vectors": {"dtype": "f4", "shape": [len(inputs), dim], "data": data}}, sum(map(len, inputs))


class MockReranker(MockBatchEngine):
    """A document is as relevant as many of the words of the query it has."""

    task = "rerank"

    def _answer(self, task: dict[str, Any]) -> tuple[dict[str, Any], int]:
        (query,) = self._read("query", [task["query"]])
        documents = self._read("documents", task["documents"], self._most(task))
        words = _spelled(query)
        scores = [relevance(words, _spelled(document)) for document in documents]
        return {"scores": scores}, sum(len(query) + len(document) for document in documents)


class MockClassifier(MockBatchEngine):
    """Three labels, of probabilities drawn from a hash of the text."""

    task = "classify"

    def _answer(self, task: dict[str, Any]) -> tuple[dict[str, Any], int]:
        inputs = self._read("input", _several(task["input"]), self._most(task))
        rows = [class_probabilities(_spelled(ids)) for ids in inputs]
        return {"labels": list(LABELS), "probabilities": rows}, sum(map(len, inputs))


def _several(given: str | list[str | list[int]]) -> list[str | list[int]]:
    return [given] if isinstance(given, str) else given


def _tokens(text: str | list[int]) -> Sequence[int]:
    return text.encode("utf-8", "replace") if isinstance(text, str) else text


def _spelled(ids: Sequence[int]) -> bytes:
    return bytes(token for token in ids if token < 256)


def unit_vector(text: bytes, dim: int) -> bytes:
    """Return the vector of a text, as its numbers lie in memory."""
    numbers = struct.unpack(f"<{dim}h", hashlib.shake_128(text).digest(2 * dim))
    norm = sum(number * number for number in numbers) ** 0.5 or 1.0
    return struct.pack(f"<{dim}f", *(number / norm for number in numbers))


def relevance(query: bytes, document: bytes) -> float:
    """Return which share of the query's words a document has."""
    words = set(query.lower().split())
    return len(words & set(document.lower().split())) / max(1, len(words))


def class_probabilities(text: bytes) -> list[float]:
    """Return the probability of each label."""
    weights = struct.unpack(f"<{len(LABELS)}H", hashlib.shake_128(text).digest(2 * len(LABELS)))
    return [weight / (sum(weights) or 1) for weight in weights]
