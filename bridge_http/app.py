"""The routes of the bridge: which path is whose, and what is answered where there is none.

The bridge keeps no state that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ..client.rates import TokenRates
from ..protocol.origins import read_host
from . import classify, health, infer, models, paths, rerank, static_files
from .access import Access, AccessCheck
from .anthropic import message_routes as anthropic
from .audit import AuditLog
from .audit_trail import AuditTrail
from .broker_client import BrokerClient
from .config import BridgeSettings
from .cors import Cors, Origins
from .errors import NoRouteError, refusal
from .in_flight import InFlight
from .key_ring import KeyRing
from .metering import UsageMeter
from .metrics import Metrics
from .middleware import Counted, OneSpelling, Traced
from .openai import response_routes as responses
from .openai import routes as openai
from .request_body import BodyReader
from .snapshot_cache import SnapshotCache
from .work import Endpoint, Work, failure


def make_app(
    broker: BrokerClient, settings: BridgeSettings, meter: UsageMeter | None = None, audit: AuditLog | None = None
) -> ASGIApp:
    """Build the ASGI application."""
    ring, meter = KeyRing(settings), meter or UsageMeter(settings)
    snapshots = SnapshotCache(broker.status, brokers=settings.broker)
    metrics = Metrics(snapshots, ring)
    metrics.add(meter.metrics)
    in_flight = InFlight(broker, settings, metrics, meter)
    ring.watch(in_flight.end_those_of)
    work = _work(in_flight, BodyReader(settings), snapshots)
    routes = _routes(in_flight, work, snapshots, metrics, ring)
    # Not among the `exception_handlers`: what handles Exception there raises it once more.
    failures = Middleware(ExceptionMiddleware, handlers={Exception: _failed})
    app = Starlette(routes=routes, middleware=[failures], exception_handlers={HTTPException: _misrouted})
    app.router.redirect_slashes = False  # a redirect names the scheme and host that the bridge sees, not its caller's
    known = {route.endpoint: route.path for route in routes}
    access = Access(settings, ring, meter.wants if audit is None else lambda _: True)
    origins = Origins(settings.cors_origins)
    others = Counted(Cors(AccessCheck(app, access), origins), metrics, known)
    every = Work(others, work, access, origins, metrics, AuditTrail(audit, settings) if audit is not None else None)
    return OneSpelling(every if settings.traces == "none" else Traced(every, known))


def _work(in_flight: InFlight, bodies: BodyReader, snapshots: SnapshotCache) -> dict[str, Endpoint]:
    return {
        "/infer": partial(infer.post, in_flight, bodies),
        "/v1/chat/completions": partial(openai.chat, in_flight, bodies, snapshots),
        "/v1/completions": partial(openai.completion, in_flight, bodies, snapshots),
        paths.RESPONSES: partial(responses.respond, in_flight, bodies, snapshots),
        "/v1/embeddings": partial(openai.embeddings, in_flight, bodies),
        paths.MESSAGES: partial(anthropic.message, in_flight, bodies, snapshots),
        paths.COUNT_TOKENS: partial(anthropic.count, in_flight, bodies),
        "/v1/classify": partial(classify.post, in_flight, bodies),
        **{path: partial(rerank.post, in_flight, bodies) for path in paths.RERANK},
    }


def _routes(
    in_flight: InFlight, work: Mapping[str, Endpoint], snapshots: SnapshotCache, metrics: Metrics, ring: KeyRing
) -> list[Route]:
    return [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in work.items()),  # for all other methods
        Route("/infer/{request_id}", partial(infer.delete, in_flight), methods=["DELETE"]),
        Route("/v1/models", partial(models.models, snapshots)),
        Route("/v1/models/{model:path}", partial(models.model, snapshots)),
        Route("/health", partial(health.ready, snapshots, ring)),
        Route("/readyz", partial(health.ready, snapshots, ring)),
        Route("/startupz", partial(health.started, snapshots)),
        Route("/livez", health.alive),
        Route("/status", partial(health.status, snapshots, TokenRates())),
        Route("/metrics", metrics.scrape),
        *static_files.routes(),
    ]


async def _failed(request: Request, error: Exception) -> Response:
    return failure(error, request.scope["path"], request.state.request_id)


async def _misrouted(request: Request, error: Exception) -> Response:
    """Answer where there is no endpoint: which one was meant, or which methods there are."""
    assert isinstance(error, HTTPException)
    path, method = request.scope["path"], request.method
    headers = dict(error.headers or {})
    if path == "*" and method == "OPTIONS":  # of the server, not of a path (RFC 9110, section 9.3.7)
        return Response(None, 204, {"allow": "GET, HEAD, POST, DELETE, OPTIONS"})
    if error.status_code == 405:
        return _method(request, headers.get("Allow", "").split(", "))
    advice = paths.advice(path, _address(request))
    if paths.is_elsewhere(path):  # a 404 or 501 makes proxies (litellm) leave the model alone for a while, a 405 not
        return _method(request, [], advice)
    return refusal(NoRouteError(error.status_code, advice, headers), path, request.state.request_id)


def _method(request: Request, allowed: list[str], text: str = "") -> Response:
    """Answer OPTIONS, and methods that a path does not take."""
    path = request.scope["path"]
    allow = {"allow": ", ".join([*sorted(allowed), "OPTIONS"])}
    if request.method == "OPTIONS":
        return Response(None, 204, allow)
    text = text or f"{path[:100]!r} takes {' or '.join(sorted(allowed))}, not {request.method[:20]}"
    return refusal(NoRouteError(405, text, allow), path, request.state.request_id)


def _address(request: Request) -> str:
    """Return where its caller found this bridge, as well as can be known; it goes into a sentence and nowhere else."""
    host = read_host(request.headers.get("host", ""))
    return f"{request.url.scheme}://{host or 'HOST:PORT'}"
