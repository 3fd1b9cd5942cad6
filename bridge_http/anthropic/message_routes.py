"""POST /v1/messages and /v1/messages/count_tokens: read, ask, answer, whole or as a stream."""

from __future__ import annotations

from functools import partial
from typing import Final

from starlette.responses import Response

from ...protocol.tool_calls import text_arguments
from ..errors import json_response
from ..generations import stream
from ..in_flight import HttpRequest, InFlight
from ..openai.other_apis import OtherApi, read_other_api
from ..request_body import BodyReader
from ..snapshot_cache import SnapshotCache
from . import message_reply as r
from .message_chat import as_chat, outline
from .message_schema import CountRequest, MessagesRequest, TokenCount, ToolChoice
from .message_task import count_task, message_task, parse

_MESSAGES: Final = OtherApi(partial(parse, schema=MessagesRequest), message_task, outline, as_chat)


async def message(in_flight: InFlight, bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest) -> Response:
    """Answer POST /v1/messages."""
    body, task = await read_other_api(_MESSAGES, bodies, snapshots, request)
    choice = body.tool_choice or ToolChoice(type="auto")
    asked = r.AskedMessage(
        rid=request.caller.rid,
        model=body.model,
        max_tokens=body.max_tokens,
        stops=task.stop,
        tools={one.name: text_arguments(one.input_schema) for one in body.tools or () if choice.type != "none"},
        is_one_call=bool(choice.disable_parallel_tool_use),
    )
    if body.stream:
        return _signed(stream(in_flight, task, request, r.MessageEvents(asked), model=body.model), request)
    result = await in_flight.generate(task, request, stream=False, model=body.model).whole(request)
    return _signed(json_response(200, r.whole(result, asked)), request)


async def count(in_flight: InFlight, bodies: BodyReader, request: HttpRequest) -> Response:
    """Answer POST /v1/messages/count_tokens.

    Only a node has the tokenizer and the template of its model, and it tells by answering. So this costs the prompt and
    one token; whoever then asks the same finds the prompt read, where its node keeps the beginnings of prompts.
    """
    body = parse(await bodies.read(request.headers, request.scope, request.receive), CountRequest)
    result = await in_flight.generate(count_task(body), request, stream=False, model=body.model).whole(request)
    return _signed(json_response(200, TokenCount(input_tokens=result.usage.prompt_tokens)), request)


def _signed(response: Response, request: HttpRequest) -> Response:
    """Name the request in the header in which clients of this API look for it."""
    response.headers["request-id"] = request.caller.request_id
    return response
