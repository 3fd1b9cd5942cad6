"""Files that are the same for everybody: the page at /, /docs about the API, and /openapi.json for programs.

They hold no datum and no secret, so they need no key. The policy sent along lets a page run nothing but its own script
and reach nothing but the bridge it came from, and no other site may frame it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles

from .paths import FILES

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "cache-control": "no-cache",  # asked for anew each time, and answered with 304 while date and size are the same
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes() -> list[Route]:
    """Return a route for each file."""
    files = StaticFiles(directory=Path(__file__).with_name("static"))
    return [_route(files, path, name, media_type) for path, (name, media_type) in FILES.items()]


def _route(files: StaticFiles, path: str, name: str, media_type: str) -> Route:
    async def endpoint(request: Request) -> Response:
        response = await files.get_response(name, request.scope)
        response.headers.update(HEADERS)  # also to a 304: a browser puts the new headers to the old body
        if response.status_code == 200:
            response.headers["content-type"] = media_type
        return response

    return Route(path, endpoint)
