"""The endpoints under /v1: read, ask, answer, whole or as a stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypedDict

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ...client.results import Result
from ...protocol.errors import ErrorKind, request_error
from ...protocol.tasks import Generate
from ..errors import Answer, encode
from ..health import SnapshotCache
from ..in_flight import InFlight, InFlightRequest
from ..replies import CLIENT_GONE, json_response
from ..request_body import BodyReader, unless_gone
from ..streaming import Events, EventStream
from . import responses as r
from .errors import answer, within
from .requests import chat_task, completion_task, embedding_task, parse
from .schema import ChatRequest, CompletionRequest, EmbeddingRequest, Generation, Model, ModelList, StreamOptions

log = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]
_STARTED: Final = int(time.time())
"""When models were made is not known; since when this bridge serves them is."""


class OpenAi:
    """The endpoints."""

    def __init__(self, desk: InFlight, watch: SnapshotCache, bodies: BodyReader) -> None:
        self._desk = desk
        self._watch = watch
        self._bodies = bodies

    def routes(self) -> list[Route]:
        """Return what is where."""
        return [
            Route("/v1/models", _answered(self._models)),
            Route("/v1/models/{model:path}", _answered(self._model)),
            Route("/v1/chat/completions", _answered(self._chat, "messages"), methods=["POST"]),
            Route("/v1/completions", _answered(self._completion, "prompt"), methods=["POST"]),
            Route("/v1/embeddings", _answered(self._embed, "input"), methods=["POST"]),
        ]

    async def _models(self, _request: Request) -> Response:
        snapshot = await self._watch.snapshot(news=True)
        data = [Model(id=one.service, created=_STARTED) for one in snapshot.services if one.is_listed]
        return json_response(200, encode(ModelList(data=data)))

    async def _model(self, request: Request) -> Response:
        name: str = request.path_params["model"]
        snapshot = await self._watch.snapshot(news=True)
        names = [one.service for one in snapshot.services if one.is_listed]
        if name not in names:
            text = f"there is no model {name[:128]!r}; there are {', '.join(names) or 'none yet'}"
            raise request_error(ErrorKind.NOT_FOUND, text)
        return json_response(200, encode(Model(id=name, created=_STARTED)))

    async def _chat(self, request: Request) -> Response:
        body = parse(await self._bodies.read(request), ChatRequest)
        id_, now = f"chatcmpl-{request.state.rid.hex()}", self._desk.begun_at(request)
        if body.stream:
            stream = r.ChatStream(id=id_, created=now, model=body.model, **_wishes(body))
            return self._stream(chat_task(body), body, request, stream)
        result = await self._whole(chat_task(body), body, request)
        return json_response(200, encode(r.chat(result, id_, now, _spelling(body))))

    async def _completion(self, request: Request) -> Response:
        body = parse(await self._bodies.read(request), CompletionRequest)
        id_, now = f"cmpl-{request.state.rid.hex()}", self._desk.begun_at(request)
        if body.stream:
            stream = r.CompletionStream(id=id_, created=now, model=body.model, **_wishes(body))
            return self._stream(completion_task(body), body, request, stream)
        result = await self._whole(completion_task(body), body, request)
        return json_response(200, encode(r.completion(result, id_, now, _spelling(body))))

    async def _embed(self, request: Request) -> Response:
        body = parse(await self._bodies.read(request), EmbeddingRequest)
        asked = self._desk.embed(embedding_task(body), request, model=body.model)
        try:
            found = await unless_gone(asked.result(), request.receive)
        finally:
            asked.close()
        return json_response(200, encode(r.embeddings(found, is_base64=body.encoding_format == "base64")))

    async def _whole(self, task: Generate, body: Generation, request: Request) -> Result:
        asked = self._desk.generate(task, request, stream=False, model=body.model)
        try:
            return await unless_gone(asked.result(), request.receive)
        finally:
            asked.close()

    def _stream(
        self, task: Generate, body: Generation, request: Request, stream: r.ChatStream | r.CompletionStream
    ) -> Response:
        asked = self._desk.generate(task, request, stream=True, model=body.model)
        subject = "messages" if isinstance(body, ChatRequest) else "prompt"
        return EventStream(_events(asked, stream), asked.close, _Shape(request.state.request_id, subject, stream))


async def _events(asked: InFlightRequest[Result], stream: r.ChatStream | r.CompletionStream) -> Events:
    """Yield the events of a stream; nothing goes out before the first token, so that a failure has a status."""
    while (chunk := await asked.next_chunk()) is not None:
        stream.learn(chunk.revision, chunk.prompt_tokens)
        if (first := stream.first()) is not None:
            yield first
        if (piece := stream.piece(chunk)) is not None:
            yield piece
    result = await asked.result()
    stream.learn(result.revision, result.usage.prompt_tokens)
    for piece in stream.last(result):
        yield piece
    yield r.DONE


class _Shape:
    """What failures look like in a stream under /v1."""

    def __init__(self, request_id: str, subject: str, stream: r.ChatStream | r.CompletionStream) -> None:
        self.request_id = request_id
        self._subject = subject
        self._stream = stream

    def idle(self) -> bytes:
        """Send a chunk that adds nothing: many clients know of `data:` lines and of nothing else."""
        return self._stream.idle()

    def before(self, error: Exception) -> Answer:
        """Answer with a status: nothing has been sent yet."""
        return answer(error, self._subject)

    def within(self, error: Exception) -> bytes:
        """End with an event, and without [DONE]."""
        return within(error)


class _Wishes(TypedDict):
    """How a stream is wanted."""

    with_usage: bool
    with_usage_so_far: bool
    spelling: r.Spelling


def _wishes(body: Generation) -> _Wishes:
    options = body.stream_options or StreamOptions()
    so_far = bool(options.continuous_usage_stats)
    return _Wishes(with_usage=bool(options.include_usage) or so_far, with_usage_so_far=so_far, spelling=_spelling(body))


def _spelling(body: Generation) -> r.Spelling:
    return r.as_id if body.return_tokens_as_token_ids else r.as_text


def _answered(endpoint: Endpoint, subject: str | None = None) -> Endpoint:
    """Turn what an endpoint raises into its answer; `subject` is the field that may be too long."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            log.info("client left before the answer", extra={"request_id": request.state.request_id})
            return Response(status_code=CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - whatever happened becomes the caller's answer
            return _refusal(error, subject, request.state.request_id)

    return answered


def _refusal(error: Exception, subject: str | None, request_id: str) -> Response:
    said = answer(error, subject)
    if said.status == 500:
        log.error("request failed: %s", error, exc_info=error, extra={"request_id": request_id})
    else:
        log.info("answered %d: %s", said.status, error, extra={"request_id": request_id})
    return json_response(said.status, said.body, said.headers)
