"""The routes of the bridge: which path is whose. The bridge keeps no state that matters."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from . import page
from .asking import Desk
from .config import BridgeSettings
from .counted import Counted
from .description import Description
from .errors import Problem, encode
from .fleet import Fleet
from .guard import Guard, is_openai
from .health import Probes, Watch
from .infer import Infer
from .metrics import Metrics
from .openai import errors as openai_errors
from .openai.routes import OpenAi
from .replies import json_response
from .status import Status


def make_app(fleet: Fleet, settings: BridgeSettings) -> ASGIApp:
    """Build the ASGI application."""
    watch = Watch(fleet.status)
    metrics = Metrics(watch)
    desk = Desk(fleet, settings, metrics)
    infer = Infer(desk, settings)
    probes = Probes(watch)
    routes = [
        Route("/infer", infer.post, methods=["POST"]),
        Route("/infer/{request_id}", infer.delete, methods=["DELETE"]),
        Route("/health", probes.ready),
        Route("/readyz", probes.ready),
        Route("/startupz", probes.started),
        Route("/livez", probes.alive),
        Route("/metrics", metrics.scrape),
        Route("/status", Status(watch).get),
        *Description().routes(),
        *OpenAi(desk, watch, settings).routes(),
        *page.routes(),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_problem})
    paths = {route.endpoint: route.path for route in routes}
    counted = Counted(Guard(app, settings), metrics, paths)
    if settings.traces == "none":
        return counted
    from .traced import Traced  # OpenTelemetry is an extra

    return Traced(counted, paths)


async def _http_problem(request: Request, error: Exception) -> Response:
    """Put the framework's own refusals (404, 405) into our shape."""
    assert isinstance(error, HTTPException)
    detail = f"{error.detail}: there are POST /infer, the OpenAI API under /v1, and GET /health"
    if is_openai(request.url.path):
        said = openai_errors.no_route(error.status_code, detail)
        return json_response(said.status, said.body, dict(error.headers or {}))
    reason = {404: "no_such_path", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    problem = Problem(detail=detail, reason=reason, request_id=request.state.request_id)
    return json_response(error.status_code, encode(problem), dict(error.headers or {}))
