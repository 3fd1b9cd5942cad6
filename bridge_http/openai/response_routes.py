"""POST /v1/responses: read, ask, answer, whole or as a stream."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from ..errors import json_response
from ..generations import stream
from ..in_flight import HttpRequest, InFlight
from ..request_body import BodyReader
from ..snapshot_cache import SnapshotCache
from . import response_reply as r
from .other_apis import OtherApi, read_other_api
from .response_chat import as_chat, outline
from .response_task import parse_response, response_task

_RESPONSES: Final = OtherApi(parse_response, response_task, outline, as_chat)


async def respond(in_flight: InFlight, bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest) -> Response:
    """Answer POST /v1/responses."""
    body, task = await read_other_api(_RESPONSES, bodies, snapshots, request)
    frame = r.AnswerFrame(body, request.caller.rid, in_flight.begun_at(request))
    if body.stream:
        return stream(in_flight, task, request, r.ResponseEvents(frame), model=body.model)
    result = await in_flight.generate(task, request, stream=False, model=body.model).whole(request)
    return json_response(200, frame.whole(result))
