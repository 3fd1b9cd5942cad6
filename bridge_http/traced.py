"""A span for each request over HTTP, so that one trace leads from whoever asked through the bridge to the node.

Only with `--traces`; then the client library beneath makes the further spans (`client/tracing.py`). Probes and pages
are left out: they would be most of what is exported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..client.tracing import context_of, traceparent_of
from ..protocol.errors import ConfigurationError

_TRACED: Final = ("/infer", "/v1/")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"})
_FAREWELL_S: Final = 2.0


def start(exporter: str) -> Callable[[], None]:
    """Set up OpenTelemetry's own SDK for this process; return what sends the last spans. Its OTEL_* settings apply.

    Raises:
        ConfigurationError: the extra that brings it is not installed.
    """
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error}; --traces needs: pip install 'zmqrt[trace]'") from None
    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if is_named else {"service.name": "zmqrt-bridge"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    if exporter == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

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


class Traced:
    """An ASGI wrapper; everything inside finds the span's traceparent in the request's state."""

    def __init__(self, app: ASGIApp, paths: Mapping[Any, str]) -> None:
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, within a span if it asks for work."""
        if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        given = Headers(scope=scope).get("traceparent", "")
        tracer = trace.get_tracer("zmqrt")
        with tracer.start_as_current_span(method, context_of(given), SpanKind.SERVER) as span:
            traceparent = traceparent_of(span)
            scope.setdefault("state", {})["traceparent"] = traceparent

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                    MutableHeaders(scope=message)["traceresponse"] = traceparent
                await send(message)

            try:
                await self._app(scope, receive, watched)
            finally:
                span.set_attribute("http.request.method", method)
                route = self._paths.get(scope.get("endpoint"))
                if route is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
