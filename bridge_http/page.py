"""The page at /: three static files that hold no datum and no secret. What they show, they ask the API for.

So they are served without a key. The policy sent along lets them run nothing but themselves and reach nothing but the
bridge they came from, and no other site may frame them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
"""Path -> file in static/, media type."""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "cache-control": "no-cache",  # asked for anew each time, and answered with 304: no old page after an upgrade
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def routes() -> list[Route]:
    """Read the files and return a route for each."""
    folder = Path(__file__).with_name("static")
    return [Route(path, _File((folder / name).read_bytes(), type_).get) for path, (name, type_) in FILES.items()]


class _File:
    """One file, kept in memory."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self._content = content
        self._headers = {**HEADERS, "etag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
        self._media_type = media_type

    async def get(self, request: Request) -> Response:
        """Answer with the file, or 304 to whoever has it already."""
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self._headers["etag"] in known:
            return Response(None, 304, self._headers)
        return Response(self._content, 200, self._headers, self._media_type)
