"""The endpoints under /v1: read, ask, answer, whole or as a stream."""

from __future__ import annotations

import time
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ...client.response import Result
from ...protocol.errors import ErrorKind, request_error
from ...protocol.tasks import Generate
from ..errors import json_response, problem
from ..in_flight import InFlight, InFlightRequest
from ..request_body import BodyReader
from ..snapshot_cache import SnapshotCache
from ..sse import Events, EventStream
from . import responses as r
from .requests import chat_task, completion_task, embedding_task, parse
from .schema import ChatRequest, CompletionRequest, EmbeddingRequest, Generation, Model, ModelList, StreamOptions

S = TypeVar("S", r.ChatStream, r.CompletionStream)
_STARTED: Final = int(time.time())
"""When models were made is not known; since when this bridge serves them is."""


async def models(snapshots: SnapshotCache, _request: Request) -> Response:
    """Answer GET /v1/models."""
    data = [Model(id=name, created=_STARTED) for name in await _listed(snapshots)]
    return json_response(200, ModelList(data=data))


async def model(snapshots: SnapshotCache, request: Request) -> Response:
    """Answer GET /v1/models/{model}."""
    name: str = request.path_params["model"]
    names = await _listed(snapshots)
    if name not in names:
        text = f"there is no model {name[:128]!r}; there are {', '.join(names) or 'none yet'}"
        raise request_error(ErrorKind.NOT_FOUND, text)
    return json_response(200, Model(id=name, created=_STARTED))


async def _listed(snapshots: SnapshotCache) -> list[str]:
    snapshot = await snapshots.snapshot(news=True)
    return [service.service for service in snapshot.services if service.is_listed]


async def chat(in_flight: InFlight, bodies: BodyReader, request: Request) -> Response:
    """Answer POST /v1/chat/completions."""
    body = parse(await bodies.read(request), ChatRequest)
    id_, now = f"chatcmpl-{request.state.rid.hex()}", in_flight.begun_at(request)
    if body.stream:
        stream = _stream_of(r.ChatStream, id_, now, body)
        return _stream(in_flight, chat_task(body), body, request, stream)
    result = await _whole(in_flight, chat_task(body), body, request)
    return json_response(200, r.chat(result, id_, now, _spelling(body)))


async def completion(in_flight: InFlight, bodies: BodyReader, request: Request) -> Response:
    """Answer POST /v1/completions."""
    body = parse(await bodies.read(request), CompletionRequest)
    id_, now = f"cmpl-{request.state.rid.hex()}", in_flight.begun_at(request)
    if body.stream:
        stream = _stream_of(r.CompletionStream, id_, now, body)
        return _stream(in_flight, completion_task(body), body, request, stream)
    result = await _whole(in_flight, completion_task(body), body, request)
    return json_response(200, r.completion(result, id_, now, _spelling(body)))


async def embeddings(in_flight: InFlight, bodies: BodyReader, request: Request) -> Response:
    """Answer POST /v1/embeddings."""
    body = parse(await bodies.read(request), EmbeddingRequest)
    found = await in_flight.embed(embedding_task(body), request, model=body.model).whole(request)
    return json_response(200, r.embeddings(found, is_base64=body.encoding_format == "base64"))


async def _whole(in_flight: InFlight, task: Generate, body: Generation, request: Request) -> Result:
    return await in_flight.generate(task, request, stream=False, model=body.model).whole(request)


def _stream(
    in_flight: InFlight, task: Generate, body: Generation, request: Request, stream: r.ChatStream | r.CompletionStream
) -> Response:
    pending = in_flight.generate(task, request, stream=True, model=body.model)
    path, request_id = request.scope["path"], request.state.request_id
    return EventStream(
        _events(pending, stream),
        close=pending.close,
        idle=stream.idle,
        failure=lambda error: r.event(problem(error, path, request_id)),  # and no [DONE]
        request_id=request_id,
    )


async def _events(pending: InFlightRequest[Result], stream: r.ChatStream | r.CompletionStream) -> Events:
    """Yield the events of a stream; nothing goes out before the first token, so that a failure has a status."""
    while (chunk := await pending.next_chunk()) is not None:
        for event in stream.of(chunk):
            yield event
    for event in stream.end(await pending.result()):
        yield event


def _stream_of(kind: type[S], id_: str, created: int, body: Generation) -> S:
    """Return what writes the stream that a body asks for."""
    options = body.stream_options or StreamOptions()
    so_far = bool(options.continuous_usage_stats)
    usage = bool(options.include_usage) or so_far
    spelling = _spelling(body)
    return kind(
        id=id_, created=created, model=body.model, with_usage=usage, with_usage_so_far=so_far, spelling=spelling
    )


def _spelling(body: Generation) -> r.Spelling:
    return r.as_id if body.return_tokens_as_token_ids else r.as_text
