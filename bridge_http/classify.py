"""POST /v1/classify: which label a model gives to each text, and how sure it is, in the shape that vLLM has for it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from ..client.scoring import Classification
from ..protocol.tasks import Classify
from .errors import json_response
from .in_flight import HttpRequest, InFlight
from .openai.requests import parse
from .openai.schema import EmbeddingUsage
from .request_body import BodyReader


class ClassifyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/classify. `truncate`: a text that is too long is cut, instead of refused."""

    model: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    input: str | Annotated[list[str], Meta(min_length=1, max_length=2048)]
    truncate: bool | None = None


class Classes(msgspec.Struct, frozen=True, kw_only=True):
    """One text: its likeliest label, and the probabilities of all of them in the order of `labels`."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to POST /v1/classify: one entry for each text, in their order. `labels` are the model's own."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    labels: list[str]
    data: list[Classes]
    usage: EmbeddingUsage


async def post(in_flight: InFlight, bodies: BodyReader, request: HttpRequest) -> Response:
    """Answer POST /v1/classify."""
    body = parse(await bodies.read(request.headers, request.scope, request.receive), ClassifyRequest)
    task = Classify(input=body.input, truncate=bool(body.truncate))
    found = await in_flight.classify(task, request, model=body.model).whole(request)
    return json_response(200, _reply(found, f"classify-{request.caller.rid.hex()}", in_flight.begun_at(request)))


def _reply(found: Classification, id_: str, now: int) -> ClassifyReply:
    labels, read = found.labels, found.usage.prompt_tokens
    data = [
        Classes(index=at, label=labels[row.index(max(row))] if row else "", probs=row, num_classes=len(row))
        for at, row in enumerate(found.probabilities)
    ]
    usage = EmbeddingUsage(prompt_tokens=read, total_tokens=read)
    return ClassifyReply(id=id_, created=now, model=found.model, labels=labels, data=data, usage=usage)
