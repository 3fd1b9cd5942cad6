"""POST /infer, the locked contract: whole, or as events for those who ask for them; and DELETE, which gives it up."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..client.response import Result
from . import sse
from .errors import RefusedError, json_response, problem
from .generations import cut, delivered_before
from .in_flight import HttpRequest, InFlight, InFlightRequest
from .json_body import KEEP_ALIVE, event
from .request_body import BodyReader
from .v1 import InferResponse, parse, to_task


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an answer to DELETE /infer/{request_id}."""

    request_id: str
    status: Literal["cancelled"] = "cancelled"


async def post(in_flight: InFlight, bodies: BodyReader, request: HttpRequest) -> Response:
    """Answer POST /infer."""
    request_id = request.caller.request_id
    body = await bodies.read(request.headers, request.scope, request.receive)
    is_stream = sse.wants_stream(request.headers.get("accept", ""))
    delivered = delivered_before(request) if is_stream else 0
    pending = in_flight.generate(to_task(parse(body)), request, stream=is_stream, is_v1=True)
    del body  # it may be large, and the answer far away
    if not is_stream:
        result = await pending.whole(request)
        return json_response(200, InferResponse(text=result.text, request_id=request_id))
    return sse.EventStream(
        _events(pending, request_id, delivered),
        close=pending.close,
        idle=lambda: KEEP_ALIVE,  # a comment: the contract has no event for it
        keep_alives=in_flight.keep_alives,
        failure=lambda error: event("error", problem(error, "/infer", request_id)),
        request_id=request_id,
    )


async def delete(in_flight: InFlight, request: Request) -> Response:
    """Answer DELETE /infer/{request_id}: whoever waits for it gets 499."""
    name: str = request.path_params["request_id"]
    if not in_flight.cancel(request.state.tenant, name):
        text = f"no request {name[:128]!r} is under way at this bridge; it may be over, or run through another bridge"
        raise RefusedError(404, "not_under_way", text)
    return json_response(200, Cancelled(request_id=name))


async def _events(pending: InFlightRequest[Result], request_id: str, delivered: int) -> sse.Events:
    """Yield token events, one for each piece of text and all that are there together, and the v1 response at the end.

    An id says how many units its reader has then had: the tokens, and one more for text held back until the end. A
    reader that comes back is sent what is beyond that.
    """
    at = 0
    while chunks := await pending.next_chunks():
        told = b""
        for chunk in chunks:
            for part, at in cut(chunk, delivered):
                if part.text and at > delivered:
                    told += event("token", {"text": part.text}, id_=f"{request_id}/{at}")
        if told:
            yield told
    whole = InferResponse(text=(await pending.result()).text, request_id=request_id)
    yield event("done", whole, id_=f"{request_id}/{at}")
