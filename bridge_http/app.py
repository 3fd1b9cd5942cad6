"""The routes of the bridge: read a request, hand it to the client library, answer. It keeps no state that matters."""

from __future__ import annotations

import logging
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..client.calls import CallOptions
from ..protocol.tasks import Generate
from . import sse
from .config import BridgeSettings
from .errors import MEDIA_TYPE, Answer, answer, encode
from .fleet import Fleet, Handle
from .guard import Guard
from .health import Watch
from .reading import read_body, unless_gone
from .streaming import Events, EventStream
from .v1 import InferResponse, parse, to_task

CLIENT_GONE: Final = 499
"""Nobody reads this status; it is for the access log."""
log = logging.getLogger(__name__)


def make_app(fleet: Fleet, settings: BridgeSettings) -> ASGIApp:
    """Build the ASGI application."""
    bridge = _Bridge(fleet, settings)
    routes = [
        Route("/infer", bridge.infer, methods=["POST"]),
        Route("/health", bridge.health),
        Route("/readyz", bridge.health),
        Route("/livez", _livez),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _http_problem}), settings)


class _Bridge:
    def __init__(self, fleet: Fleet, settings: BridgeSettings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._watch = Watch(fleet.status)

    async def infer(self, request: Request) -> Response:
        """Answer POST /infer: whole, or as events where the caller asks for them."""
        request_id: str = request.state.request_id
        try:
            body = await read_body(request.headers, request.receive, self._settings.body_limit_bytes)
            is_stream = sse.wants_stream(request.headers.get("accept", ""))
            handle = self._submit(to_task(parse(body)), request, stream=is_stream)
            if is_stream:
                return EventStream(_events(handle, request_id), request_id)
            return _json(200, encode(await _whole(handle, request)))
        except ClientDisconnect:
            log.info("client left before the answer", extra={"request_id": request_id})
            return Response(status_code=CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - whatever happened becomes the caller's answer
            return _refusal(answer(error, request_id), error, request_id)

    def _submit(self, task: Generate, request: Request, *, stream: bool) -> Handle:
        options = CallOptions(
            model=self._settings.default_model,
            timeout_s=self._settings.request_timeout_s,
            request_id=request.state.request_id,
            traceparent=request.headers.get("traceparent"),
            retries=0,  # the caller is told when to come back, and holds nothing open here meanwhile
        )
        return self._fleet.submit_task(task, stream=stream, rid=request.state.rid, **options)

    async def health(self, _request: Request) -> Response:
        """Answer GET /health and /readyz from what was last seen."""
        health = await self._watch.health()
        headers = {} if health.ready else {"retry-after": "1"}
        return _json(200 if health.ready else 503, encode(health), headers)


async def _whole(handle: Handle, request: Request) -> InferResponse:
    try:
        result = await unless_gone(handle.result(), request.receive)
        return InferResponse(text=result.text, request_id=request.state.request_id)
    finally:
        handle.cancel()  # nothing happens where it has ended


async def _events(handle: Handle, request_id: str) -> Events:
    """Yield a token event for each piece of text, and the v1 response at the end. An id counts tokens delivered."""
    delivered = 0
    try:
        while (chunk := await handle.next_chunk()) is not None:
            delivered = chunk.index + len(chunk.token_ids)
            if chunk.text:
                yield sse.event("token", {"text": chunk.text}, id_=f"{request_id}/{delivered}")
        whole = InferResponse(text=(await handle.result()).text, request_id=request_id)
        yield sse.event("done", whole, id_=f"{request_id}/{delivered}")
    finally:
        handle.cancel()


async def _livez(_request: Request) -> Response:
    """Answer while the process lives, whatever the fleet does."""
    return _json(200, encode({"status": "ok"}))


async def _http_problem(request: Request, error: Exception) -> Response:
    """Put the framework's own refusals (404, 405) into our shape."""
    assert isinstance(error, HTTPException)
    reason = {404: "no_such_path", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = f"{error.detail}: there are POST /infer and GET /health, /readyz, /livez"
    body = {"detail": detail, "reason": reason, "request_id": request.state.request_id}
    return _json(error.status_code, encode(body), dict(error.headers or {}))


def _refusal(said: Answer, error: Exception, request_id: str) -> Response:
    if said.status == 500:
        log.error("request failed: %s", error, exc_info=error, extra={"request_id": request_id})
    else:
        log.info("answered %d: %s", said.status, error, extra={"request_id": request_id})
    return _json(said.status, said.body, said.headers)


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, MEDIA_TYPE)
