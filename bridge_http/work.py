"""Answers the paths that ask for work without the framework: which request it is, who asks, the count and the answer.

All of that is one function here, since each wrapper around a request costs more than some whole services do. Whatever
is no POST to one of these paths goes on to the app, where wrappers and routes say the same in their own places.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, cast

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import Access
from .audit_trail import AuditTrail
from .cors import Origins
from .errors import CLIENT_GONE, refusal
from .exchange import ANSWER, HEADERS
from .in_flight import HttpRequest
from .metrics import Metrics
from .sse import EventStream

Endpoint = Callable[[HttpRequest], Awaitable[Response]]
log: Final = logging.getLogger(__name__)


class Work:
    """An ASGI app: those of its paths that are asked by POST, before another app."""

    def __init__(
        self,
        app: ASGIApp,
        endpoints: Mapping[str, Endpoint],
        access: Access,
        origins: Origins,
        metrics: Metrics,
        audit: AuditTrail | None = None,
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._access = access
        self._origins = origins
        self._metrics = metrics
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass a request on."""
        path: str = scope["path"]
        endpoint = self._endpoints.get(path) if scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        headers = _headers_of(scope)
        caller = self._access.caller_of("POST", path, headers)
        if self._audit is not None:
            caller = self._audit.admit(caller)
        route = "other"  # a stranger's refusals say nothing of how long answers take
        if caller.refused is None:
            scope["endpoint"], route = endpoint, path  # who traces looks it up there
        traceparent = scope.get("state", {}).get("traceparent", "")
        request = HttpRequest(path, headers, scope, receive, caller, traceparent)
        began_at, status = time.monotonic(), CLIENT_GONE
        streams: list[EventStream] = []
        self._metrics.in_flight += 1
        try:
            response = await self._answer(endpoint, request, send, streams)
            status = response.status_code
        except Exception:
            status = 500  # the server answers so
            raise
        finally:
            self._metrics.in_flight -= 1
            for stream in streams:  # what its reader has seen, however it ended; without a head its reader has left
                if stream.has_begun:
                    status = stream.status_code
                elif status == stream.status_code:
                    status = CLIENT_GONE
            took_s = time.monotonic() - began_at
            self._metrics.answered(route, "POST", status, took_s)
            if self._audit is not None:
                self._audit.note(request, status, took_s)

    async def _answer(
        self, endpoint: Endpoint, request: HttpRequest, send: Send, streams: list[EventStream]
    ) -> Response:
        """Answer, with whatever goes wrong too as long as nothing has gone out; return what was sent.

        A stream is put into `streams` before it begins.
        """
        path, scope, caller = request.path, request.scope, request.caller
        standing = caller.standing
        try:
            if caller.refused is not None:
                response = refusal(caller.refused, path, caller.request_id)
            else:
                response = await endpoint(request)
                if isinstance(response, EventStream):
                    streams.append(response)
                    self._sign(response, request)
                    await response(scope, request.receive, send if standing is None else standing.signing(send))
                    return response
        except ClientDisconnect:
            response = left(caller.request_id)
        except Exception as error:
            if streams and streams[0].has_begun:
                raise
            response = failure(error, path, caller.request_id)
        self._sign(response, request)
        if standing is not None:
            response.raw_headers.extend(standing.headers())
        answer = scope["extensions"].get(ANSWER) if "extensions" in scope else None
        if answer is not None:
            await answer(response.status_code, response.raw_headers, response.body)
        else:
            await response(scope, request.receive, send)
        return response

    def _sign(self, response: Response, request: HttpRequest) -> None:
        response.raw_headers.append((b"x-request-id", request.caller.request_id.encode("latin-1")))
        if self._origins:
            self._origins.mark(response.headers, request.headers.get("origin"))


def _headers_of(scope: Scope) -> Mapping[str, str]:
    """Return the headers; of two with one name the first counts."""
    if "extensions" in scope and HEADERS in scope["extensions"]:  # our own server has read them
        return cast("Mapping[str, str]", scope["extensions"][HEADERS])
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def failure(error: Exception, path: str, request_id: str) -> Response:
    """Answer with what an endpoint raised."""
    response = refusal(error, path, request_id)
    if response.status_code == 500:
        log.error("request failed: %s", error, exc_info=error, extra={"request_id": request_id})
    else:
        log.info("answered %d: %s", response.status_code, error, extra={"request_id": request_id})
    return response


def left(request_id: str) -> Response:
    """Answer nobody."""
    log.info("client left before the answer", extra={"request_id": request_id})
    return Response(status_code=CLIENT_GONE)
