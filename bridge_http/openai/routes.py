"""The endpoints under /v1: read, ask, answer, whole or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgspec
from starlette.responses import Response

from ...client.response import Result
from ...protocol.tasks import Generate
from ..choices import start, stream_choices
from ..errors import InvalidRequestError, json_response
from ..generations import stream
from ..in_flight import HttpRequest, InFlight
from ..json_body import encode, read_value
from ..request_body import BodyReader
from ..snapshot_cache import SnapshotCache
from . import responses as r
from .other_apis import may_pass
from .passing import divide, needs_here
from .requests import chat_task, choices_of, completion_tasks, embedding_task, parse
from .schema import ChatRequest, CompletionRequest, EmbeddingRequest, Generation, StreamOptions
from .tools import AskedTools

G = TypeVar("G", ChatRequest, CompletionRequest)


async def chat(in_flight: InFlight, bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest) -> Response:
    """Answer POST /v1/chat/completions."""
    body, extra = await _read(bodies, snapshots, request, ChatRequest)
    return await _generate(in_flight, request, body, [_with(extra, chat_task(body))], _CHAT)


async def completion(
    in_flight: InFlight, bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest
) -> Response:
    """Answer POST /v1/completions."""
    body, extra = await _read(bodies, snapshots, request, CompletionRequest)
    tasks = [_with(extra, task) for task in completion_tasks(body)]
    return await _generate(in_flight, request, body, tasks, _COMPLETION)


async def _read(
    bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest, schema: type[G]
) -> tuple[G, dict[str, Any]]:
    """Read a generation, and apart from it what is not ours where its model may understand that."""
    raw = await bodies.read(request.headers, request.scope, request.receive)
    try:
        body = parse(raw, schema)
    except InvalidRequestError:
        value = read_value(raw)
        given = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if not given or not await may_pass(snapshots, given.get("model")):
            raise
    else:
        needs = needs_here(body)
        if not needs or not await may_pass(snapshots, body.model, unless=needs):
            return body, {}
        given = cast("dict[str, Any]", read_value(raw))
    rest, extra = divide(given, schema)
    return parse(encode(rest), schema), extra


def _with(extra: dict[str, Any], task: Generate) -> Generate:
    return msgspec.structs.replace(task, extra=extra) if extra else task


async def embeddings(in_flight: InFlight, bodies: BodyReader, request: HttpRequest) -> Response:
    """Answer POST /v1/embeddings."""
    body = parse(await bodies.read(request.headers, request.scope, request.receive), EmbeddingRequest)
    found = await in_flight.embed(embedding_task(body), request, model=body.model).whole(request)
    return json_response(200, r.embeddings(found, is_base64=body.encoding_format == "base64"))


class _Kind(NamedTuple):
    """What differs between chats and completions: how ids begin, and what writes an answer."""

    prefix: str
    stream: type[r.ChatStream | r.CompletionStream]
    whole: Callable[[Sequence[Result], int, str, int, r.Spelling, AskedTools], object]


_CHAT: Final = _Kind("chatcmpl", r.ChatStream, r.chat)
_COMPLETION: Final = _Kind("cmpl", r.CompletionStream, r.completion)


async def _generate(
    in_flight: InFlight, request: HttpRequest, body: Generation, tasks: Sequence[Generate], kind: _Kind
) -> Response:
    id_, created = f"{kind.prefix}-{request.caller.rid.hex()}", in_flight.begun_at(request)
    spelling = r.as_id if body.return_tokens_as_token_ids else r.as_text
    asked = AskedTools.of(body, request.caller.rid, tasks[0].extra)
    per_prompt, tasks = body.n or 1, choices_of(tasks, body.n)
    if not body.stream:
        choices = start(in_flight, tasks, request, stream=False, model=body.model, per_prompt=per_prompt)
        return json_response(200, kind.whole(await choices.whole(request), per_prompt, id_, created, spelling, asked))
    options = body.stream_options or StreamOptions()
    so_far = bool(options.continuous_usage_stats)
    writers = [
        kind.stream(
            id=id_,
            created=created,
            model=body.model,
            with_usage=bool(options.include_usage) or so_far,
            with_usage_so_far=so_far,
            spelling=spelling,
            asked=asked,
            index=index,
        )
        for index in range(len(tasks))
    ]
    if len(tasks) == 1:
        return stream(in_flight, tasks[0], request, writers[0], model=body.model)
    writer = r.AnswerStream(writers, per_prompt)
    return stream_choices(in_flight, tasks, request, writer, model=body.model, per_prompt=per_prompt)
