"""What rerankers and classifiers answer, as the library returns it.

How many of the best are wanted is decided here: a node judges all that it was given, in the order that it came in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..protocol import messages as m
from ..protocol import tasks
from ..protocol.errors import ErrorKind, request_error
from ..protocol.tasks import Usage
from .response import ResponseReader, read_unary


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One document: its place among those that were given, from 0, and how relevant it is, from 0 to 1."""

    index: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How relevant each document is: `scores` in the order in which they were given."""

    scores: list[float]
    usage: Usage
    model: str
    revision: str
    request_id: str

    def best(self, top_n: int | None = None) -> list[RankedDocument]:
        """Return so many of the most relevant, the best first; of equals the one that was given first."""
        order = sorted(range(len(self.scores)), key=lambda index: -self.scores[index])
        return [RankedDocument(index, self.scores[index]) for index in order[:top_n]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What a model takes each input for: the probabilities of all `labels`, in their order."""

    labels: list[str]
    probabilities: list[list[float]]
    usage: Usage
    model: str
    revision: str
    request_id: str

    def by_label(self) -> list[dict[str, float]]:
        """Return for each input the probability of each label, the likeliest first."""
        rows = [zip(self.labels, row, strict=True) for row in self.probabilities]
        return [dict(sorted(row, key=lambda entry: -entry[1])) for row in rows]


def read_ranking(request_id: str, documents: int) -> ResponseReader[Ranking]:
    """Read a score for each of so many documents."""

    def read(final: m.Final, request_id: str) -> Ranking:
        body = tasks.decode_answer(final.body, tasks.RerankResult)
        if len(body.scores) != documents:
            text = f"the node answered {len(body.scores)} scores for {documents} documents"
            raise request_error(ErrorKind.MODEL_RAISED, text, request_id=request_id)
        _check_numbers(body.scores, request_id)
        return Ranking(
            scores=body.scores, usage=body.usage, model=body.model, revision=body.revision, request_id=request_id
        )

    return read_unary(request_id, read)


def read_classification(request_id: str, inputs: int) -> ResponseReader[Classification]:
    """Read the classes of so many inputs."""

    def read(final: m.Final, request_id: str) -> Classification:
        body = tasks.decode_answer(final.body, tasks.ClassifyResult)
        if [len(row) for row in body.probabilities] != [len(body.labels)] * inputs:
            text = f"the node answered other than {len(body.labels)} probabilities for each of {inputs} inputs"
            raise request_error(ErrorKind.MODEL_RAISED, text, request_id=request_id)
        _check_numbers((number for row in body.probabilities for number in row), request_id)
        return Classification(
            labels=body.labels,
            probabilities=body.probabilities,
            usage=body.usage,
            model=body.model,
            revision=body.revision,
            request_id=request_id,
        )

    return read_unary(request_id, read)


def _check_numbers(numbers: Iterable[float], request_id: str) -> None:
    """Refuse NaN and infinity: NaN has no place in an order, and what is sorted beside it has none either."""
    if not all(map(math.isfinite, numbers)):
        text = "the node answered NaN or infinity where numbers are meant"
        raise request_error(ErrorKind.MODEL_RAISED, text, request_id=request_id)
