"""An ASGI wrapper that counts every answer: by route, method and status, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics
from .replies import CLIENT_GONE

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
_SCRAPE: Final = "/metrics"


class Counted:
    """Counts what passes. Routes and methods that are none are one of each: a client must not make series."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Mapping[Any, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_at, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        in_flight = 0 if scope["path"].rstrip("/") == _SCRAPE else 1  # who counts is not counted
        self._metrics.in_flight.inc(in_flight)
        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = status or 500  # the server answers so
            raise
        finally:
            self._metrics.in_flight.dec(in_flight)
            status = status or CLIENT_GONE  # a stream whose reader has left before its head
            path = self._paths.get(scope.get("endpoint"), "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(path, method, status, time.monotonic() - began_at)
