"""ASGI wrappers around all others: one spelling of each path, a count of every answer, and a span for each request."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..client.tracing import context_of, traceparent_of
from ..protocol.errors import ConfigurationError
from . import paths
from .errors import CLIENT_GONE
from .exchange import ANSWER
from .metrics import Metrics

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
_SCRAPE: Final = "/metrics"
_TRACED: Final = ("/infer", "/v1/")
"""Probes and pages are left out: they would be most of what is exported."""
_FAREWELL_S: Final = 2.0


class OneSpelling:
    """Tidies the path: who guards it and who answers it must see the same one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        path = scope["path"]
        if path.endswith("/") or "//" in path:
            scope = {**scope, "path": paths.tidy(path)}
        await self._app(scope, receive, send)


class Counted:
    """Counts every answer by route, method and status. Routes and methods that are none are one of each: a client must
    not make series.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Mapping[Any, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its answer."""
        began_at, status = time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        in_flight = 0 if scope["path"] == _SCRAPE else 1  # who counts is not counted
        self._metrics.in_flight += in_flight
        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = status or 500  # the server answers so
            raise
        finally:
            self._metrics.in_flight -= in_flight
            status = status or CLIENT_GONE  # a stream whose reader has left before its head
            route = self._routes.get(scope.get("endpoint"), "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.answered(route, method, status, time.monotonic() - began_at)


class Traced:
    """Makes a span of each request, so that one trace leads from whoever asked through the bridge to the node.

    Everything inside finds the span's traceparent in the request's state; the client library beneath makes the further
    spans. Only with `--traces`, since OpenTelemetry is an extra.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[Any, str]) -> None:
        from opentelemetry import trace

        self._trace = trace
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, within a span if it asks for work."""
        if not scope["path"].startswith(_TRACED):
            await self._app(scope, receive, send)
            return
        trace = self._trace
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        parent = context_of(Headers(scope=scope).get("traceparent", ""))
        with trace.get_tracer("zmqrt").start_as_current_span(method, parent, trace.SpanKind.SERVER) as span:
            traceparent = traceparent_of(span)
            scope.setdefault("state", {})["traceparent"] = traceparent
            scope.get("extensions", {}).pop(ANSWER, None)  # the span is to see each answer

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(trace.Status(trace.StatusCode.ERROR))
                    MutableHeaders(scope=message)["traceresponse"] = traceparent
                await send(message)

            try:
                await self._app(scope, receive, watched)
            finally:
                span.set_attribute("http.request.method", method)
                route = self._routes.get(scope.get("endpoint"))
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)


def start_traces(exporter: str) -> Callable[[], None]:
    """Set up OpenTelemetry's own SDK for this process; return what sends the last spans. Its OTEL_* settings apply.

    Raises:
        ConfigurationError: the extra that brings it is not installed.
    """
    if exporter == "none":
        return lambda: None
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error}; --traces needs: pip install 'zmqrt[trace]'") from None
    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if is_named else {"service.name": "zmqrt-bridge"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if exporter == "console":
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        last = threading.Thread(target=provider.shutdown, daemon=True)
        last.start()
        last.join(_FAREWELL_S)  # a collector that does not answer must not keep a bridge from leaving

    return stop
