"""POST /infer, the locked contract: whole, or as events for those who ask for them; and DELETE, which gives it up."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..client.results import Chunk, Result
from . import sse
from .errors import Answer, BadHeaderError, Problem, answer, encode, problem
from .in_flight import InFlight, InFlightRequest, idempotency_key
from .replies import CLIENT_GONE, json_response
from .request_body import BodyReader, unless_gone
from .streaming import Events, EventStream
from .v1 import InferResponse, parse, to_task

_EVENT_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}/(?P<delivered>[0-9]{1,9})")
log = logging.getLogger(__name__)


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """Body of an answer to DELETE /infer/{request_id}."""

    request_id: str
    status: Literal["cancelled"] = "cancelled"


class Infer:
    """The endpoint."""

    def __init__(self, desk: InFlight, bodies: BodyReader) -> None:
        self._desk = desk
        self._bodies = bodies

    async def post(self, request: Request) -> Response:
        """Answer POST /infer."""
        request_id: str = request.state.request_id
        try:
            body = await self._bodies.read(request)
            is_stream = sse.wants_stream(request.headers.get("accept", ""))
            delivered = delivered_before(request) if is_stream else 0
            asked = self._desk.generate(to_task(parse(body)), request, stream=is_stream, is_v1=True)
            del body  # it may be large, and the answer far away
            if is_stream:
                return EventStream(_events(asked, request_id, delivered), asked.close, _Shape(request_id))
            return json_response(200, encode(await _whole(asked, request)))
        except ClientDisconnect:
            log.info("client left before the answer", extra={"request_id": request_id})
            return Response(status_code=CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - whatever happened becomes the caller's answer
            return refusal(error, request_id)

    async def delete(self, request: Request) -> Response:
        """Answer DELETE /infer/{request_id}: whoever waits for it gets 499."""
        name: str = request.path_params["request_id"]
        if self._desk.cancel(request.state.tenant, name):
            return json_response(200, encode(Cancelled(request_id=name)))
        text = f"no request {name[:128]!r} is under way at this bridge; it may be over, or run through another bridge"
        said = Problem(detail=text, reason="not_under_way", request_id=request.state.request_id)
        return json_response(404, encode(said))


def delivered_before(request: Request) -> int:
    """Return how many units of its stream a caller that comes back has had. Raises BadHeaderError."""
    given = request.headers.get("last-event-id", "")
    if not given:
        return 0
    found = _EVENT_ID.fullmatch(given)
    if found is None:
        raise BadHeaderError("last-event-id", "it is not an id that a stream of this bridge has sent")
    if not idempotency_key(request):
        text = "which stream goes on, the Idempotency-Key says that it was begun with; send that too"
        raise BadHeaderError("last-event-id", text)
    return int(found["delivered"])


async def _whole(asked: InFlightRequest[Result], request: Request) -> InferResponse:
    try:
        result = await unless_gone(asked.result(), request.receive)
        return InferResponse(text=result.text, request_id=request.state.request_id)
    finally:
        asked.close()


async def _events(asked: InFlightRequest[Result], request_id: str, delivered: int) -> Events:
    """Yield a token event for each piece of text, and the v1 response at the end.

    An id says how many units its reader has then had: the tokens, and one more for text held back until the end. A
    reader that comes back is sent what is beyond that.
    """
    at = 0
    while (chunk := await asked.next_chunk()) is not None:
        text, at = rest_of(chunk, delivered)
        if text:
            yield sse.event("token", {"text": text}, id_=f"{request_id}/{at}")
    whole = InferResponse(text=(await asked.result()).text, request_id=request_id)
    yield sse.event("done", whole, id_=f"{request_id}/{at}")


def rest_of(chunk: Chunk, delivered: int) -> tuple[str, int]:
    """Return the text of a chunk beyond the units delivered, and how many are then."""
    if not chunk.token_ids:  # text held back until the end is a unit of its own
        at = chunk.index + 1
        return ("" if delivered >= at else chunk.text), at
    at = chunk.index + len(chunk.token_ids)
    pieces: Sequence[str] = chunk.pieces[max(0, delivered - chunk.index) :]
    return "".join(pieces), at


class _Shape:
    """What failures look like in a stream of /infer."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id

    def idle(self) -> bytes:
        """Send a comment: the contract has no event for it."""
        return sse.KEEP_ALIVE

    def before(self, error: Exception) -> Answer:
        """Answer with a status: nothing has been sent yet."""
        return answer(error, self.request_id)

    def within(self, error: Exception) -> bytes:
        """End with an event: the status has gone out."""
        return sse.event("error", problem(error, self.request_id))


def refusal(error: Exception, request_id: str) -> Response:
    """Answer with what went wrong, and log it."""
    said = answer(error, request_id)
    if said.status == 500:
        log.error("request failed: %s", error, exc_info=error, extra={"request_id": request_id})
    else:
        log.info("answered %d: %s", said.status, error, extra={"request_id": request_id})
    return json_response(said.status, said.body, said.headers)
