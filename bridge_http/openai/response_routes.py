"""POST /v1/responses: read, ask, answer, whole or as a stream."""

from __future__ import annotations

from starlette.responses import Response

from ...protocol.tasks import Generate, needs_of
from ..errors import InvalidRequestError, json_response
from ..generations import stream
from ..in_flight import HttpRequest, InFlight
from ..json_body import encode
from ..request_body import BodyReader
from ..snapshot_cache import SnapshotCache
from . import response_reply as r
from .passing import passed_on
from .requests import read_fields
from .response_chat import as_chat, outline
from .response_schema import ResponsesRequest
from .response_task import parse_response, response_task
from .routes import may_pass


async def respond(in_flight: InFlight, bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest) -> Response:
    """Answer POST /v1/responses."""
    body, task = await _read(bodies, snapshots, request)
    frame = r.AnswerFrame(body, request.caller.rid, in_flight.begun_at(request))
    if body.stream:
        return stream(in_flight, task, request, r.ResponseEvents(frame), model=body.model)
    result = await in_flight.generate(task, request, stream=False, model=body.model).whole(request)
    return json_response(200, frame.whole(result))


async def _read(
    bodies: BodyReader, snapshots: SnapshotCache, request: HttpRequest
) -> tuple[ResponsesRequest, Generate]:
    """Read a request, and make its task: ours, or one that a server behind the model's node does in its own way."""
    raw = await bodies.read(request.headers, request.scope, request.receive)
    try:
        body = parse_response(raw)
        task = response_task(body)
    except InvalidRequestError as error:
        given = read_fields(raw)
        if not await may_pass(snapshots, given.get("model")):
            raise
        try:
            return parse_response(encode(outline(given))), passed_on(as_chat(given))
        except InvalidRequestError:
            raise error from None
    needs = needs_of(task)
    if needs is None or not await may_pass(snapshots, body.model, unless=set(needs.split(","))):
        return body, task
    return body, passed_on(as_chat(read_fields(raw)))
