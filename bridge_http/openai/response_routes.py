"""POST /v1/responses: read, ask, answer, whole or as a stream."""

from __future__ import annotations

from starlette.responses import Response

from ..errors import json_response
from ..generations import stream
from ..in_flight import HttpRequest, InFlight
from ..request_body import BodyReader
from . import response_reply as r
from .response_task import parse_response, response_task


async def respond(in_flight: InFlight, bodies: BodyReader, request: HttpRequest) -> Response:
    """Answer POST /v1/responses."""
    body = parse_response(await bodies.read(request.headers, request.scope, request.receive))
    task = response_task(body)
    frame = r.AnswerFrame(body, request.caller.rid, in_flight.begun_at(request))
    if body.stream:
        return stream(in_flight, task, request, r.ResponseEvents(frame), model=body.model)
    result = await in_flight.generate(task, request, stream=False, model=body.model).whole(request)
    return json_response(200, frame.whole(result))
