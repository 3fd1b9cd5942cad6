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
from .errors import encode
from .fleet import Fleet
from .guard import Guard
from .health import Probes, Watch
from .infer import Infer
from .replies import json_response
from .status import Status


def make_app(fleet: Fleet, settings: BridgeSettings) -> ASGIApp:
    """Build the ASGI application."""
    desk = Desk(fleet, settings)
    infer = Infer(desk, settings)
    watch = Watch(fleet.status)
    probes = Probes(watch)
    routes = [
        Route("/infer", infer.post, methods=["POST"]),
        Route("/infer/{request_id}", infer.delete, methods=["DELETE"]),
        Route("/health", probes.ready),
        Route("/readyz", probes.ready),
        Route("/startupz", probes.started),
        Route("/livez", probes.alive),
        Route("/status", Status(watch).get),
        *page.routes(),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _http_problem}), settings)


async def _http_problem(request: Request, error: Exception) -> Response:
    """Put the framework's own refusals (404, 405) into our shape."""
    assert isinstance(error, HTTPException)
    reason = {404: "no_such_path", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = f"{error.detail}: there are POST /infer and GET /health, /readyz, /livez"
    body = {"detail": detail, "reason": reason, "request_id": request.state.request_id}
    return json_response(error.status_code, encode(body), dict(error.headers or {}))
