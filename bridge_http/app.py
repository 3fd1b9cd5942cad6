"""The routes of the bridge: which path is whose. The bridge keeps no state that matters."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..protocol.origins import read_host
from . import paths, static_files
from .access import AccessCheck
from .broker_client import BrokerClient
from .config import BridgeSettings
from .cors import Cors, Origins
from .health import HealthEndpoints, SnapshotCache
from .in_flight import InFlight
from .infer import Infer
from .metrics import Metrics
from .middleware import Counted
from .openai.routes import OpenAi
from .refusals import misrouted, refusal
from .replies import json_response
from .request_body import BodyReader
from .status import StatusEndpoint


def make_app(fleet: BrokerClient, settings: BridgeSettings) -> ASGIApp:
    """Build the ASGI application."""
    watch = SnapshotCache(fleet.status, brokers=settings.broker)
    metrics = Metrics(watch)
    desk = InFlight(fleet, settings, metrics)
    bodies = BodyReader(settings)
    infer = Infer(desk, bodies)
    probes = HealthEndpoints(watch)
    routes = [
        Route("/infer", infer.post, methods=["POST"]),
        Route("/infer/{request_id}", infer.delete, methods=["DELETE"]),
        Route("/health", probes.ready),
        Route("/readyz", probes.ready),
        Route("/startupz", probes.started),
        Route("/livez", probes.alive),
        Route("/metrics", metrics.scrape),
        Route("/status", StatusEndpoint(watch).get),
        *OpenAi(desk, watch, bodies).routes(),
        *static_files.routes(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _misrouted, Exception: _failed})
    app.router.redirect_slashes = False  # a redirect names the scheme and host that the bridge sees, not its caller's
    known = {route.endpoint: route.path for route in routes}
    marked = Cors(AccessCheck(app, settings), Origins(settings.cors_origins))
    counted = Counted(marked, metrics, known)
    if settings.traces == "none":
        return Tidy(counted)
    from .traced import Traced  # OpenTelemetry is an extra

    return Tidy(Traced(counted, known))


class Tidy:
    """An ASGI wrapper around all others: who guards a path and who answers it must see the same one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        path = paths.tidy(scope["path"])
        await self._app(scope if path == scope["path"] else {**scope, "path": path}, receive, send)


async def _misrouted(request: Request, error: Exception) -> Response:
    """Answer where there is no endpoint: which one was meant, or which methods there are."""
    assert isinstance(error, HTTPException)
    path, method = request.scope["path"], request.method
    if error.status_code == 405:
        return _method(request, (error.headers or {}).get("Allow", "").split(", "))
    if path == "*" and method == "OPTIONS":  # of the server, not of a path (RFC 9110, section 9.3.7)
        return Response(None, 204, {"allow": "GET, HEAD, POST, DELETE, OPTIONS"})
    if paths.is_elsewhere(path):  # a 404 or 501 makes proxies (litellm) leave the model alone for a while, a 405 not
        return _method(request, [], paths.advice(path, _address(request)))
    said = misrouted(error.status_code, paths.advice(path, _address(request)), path, request.state.request_id)
    return json_response(said.status, said.body, {**said.headers, **(error.headers or {})})


def _method(request: Request, allowed: list[str], text: str = "") -> Response:
    """Answer OPTIONS, and methods that a path does not take."""
    path = request.scope["path"]
    allow = {"allow": ", ".join([*sorted(allowed), "OPTIONS"])}
    if request.method == "OPTIONS":
        return Response(None, 204, allow)
    text = text or f"{path[:100]!r} takes {' or '.join(sorted(allowed))}, not {request.method[:20]}"
    said = misrouted(405, text, path, request.state.request_id)
    return json_response(said.status, said.body, {**said.headers, **allow})


async def _failed(request: Request, error: Exception) -> Response:
    """Answer for an endpoint that did not; the framework has the log say why."""
    said = refusal(error, request.scope["path"], request.state.request_id)
    return json_response(said.status, said.body, said.headers)


def _address(request: Request) -> str:
    """Return where its caller found this bridge, as well as can be known; it goes into a sentence and nowhere else."""
    is_tls = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    host = read_host(request.headers.get("host", ""))
    return f"{'https' if is_tls else 'http'}://{host or 'HOST:PORT'}"
