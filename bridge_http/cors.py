"""Pages of other origins: which may read what the bridge answers, as browsers ask for it (CORS, in the Fetch standard).

The framework's own middleware knows origins as literal texts, and sends part of its headers to everybody. Here an
origin that is not allowed sees no header of CORS at all. No credentials are allowed: a bridge has no cookies, and a key
in a header is none in the eyes of a browser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..protocol.origins import ANY, Origin, matches_origin, read_origin

_METHODS: Final = "GET, HEAD, POST, DELETE, OPTIONS"
_USUAL_HEADERS: Final = (
    "authorization, content-type, x-api-key, x-request-id, x-request-timeout, idempotency-key, last-event-id, accept"
)
_EXPOSED: Final = "x-request-id, retry-after, x-should-retry, traceresponse, www-authenticate, allow"
"""What a page may read beside the body: which request it was, and when to come back."""
_MAX_AGE_S: Final = "600"
"""How long a browser need not ask again: a request costs one round trip instead of two, and a changed setting shows
soon."""
_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+(\s*,\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
_ORIGIN_FIELD: Final = re.compile(rb"\r\norigin:[ \t]*([^\r\n]{1,300})\r", re.IGNORECASE)
_LONGEST: Final = 4096
"""Characters of header names that are repeated; a browser's list has a few hundred."""


class Origins:
    """The origins that are allowed."""

    def __init__(self, patterns: Sequence[Origin]) -> None:
        self._patterns = patterns

    def __bool__(self) -> bool:
        return bool(self._patterns)

    @property
    def has_any(self) -> bool:
        """Whether all are."""
        return any(pattern.scheme == ANY for pattern in self._patterns)

    def __contains__(self, origin: str) -> bool:
        read = read_origin(origin)
        return read is not None and any(matches_origin(read, pattern) for pattern in self._patterns)

    def headers_for(self, origin: str | None) -> dict[str, str]:
        """Return what goes with every answer to a page of that origin; nothing for others.

        `Vary` goes to everybody: a cache must not give one page what was answered to another.
        """
        if not self._patterns:
            return {}
        if self.has_any:
            return {"access-control-allow-origin": ANY, "access-control-expose-headers": _EXPOSED} if origin else {}
        if origin is None or origin not in self:
            return {"vary": "Origin"}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": _EXPOSED,
            "vary": "Origin",
        }

    def mark(self, answer: MutableHeaders, origin: str | None) -> None:
        """Add to the headers of an answer what goes with each to a page of that origin."""
        for name, value in self.headers_for(origin).items():
            answer.add_vary_header(value) if name == "vary" else answer.update({name: value})

    def preflight(self, headers: Mapping[str, str]) -> dict[str, str] | None:
        """Return the answer to a browser's question before a request; None where its page is not allowed."""
        origin = headers.get("origin", "")
        if origin not in self:
            return None
        asked = headers.get("access-control-request-headers", "")
        is_readable = len(asked) <= _LONGEST and _HEADER_NAMES.fullmatch(asked.strip()) is not None
        answer = {
            **self.headers_for(origin),
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": asked.strip() if is_readable else _USUAL_HEADERS,
            "access-control-max-age": _MAX_AGE_S,
            "vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        }
        if headers.get("access-control-request-private-network") == "true":  # a page of the internet, and we are here
            answer["access-control-allow-private-network"] = "true"
        return answer


class Cors:
    """An ASGI wrapper: answers preflights of allowed origins, which carry no key, and marks all other answers."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if not self._origins:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if is_preflight(str(scope["method"]), headers):
            answer = self._origins.preflight(headers)
            if answer is not None:
                await Response(None, 204, answer)(scope, receive, send)
                return
        origin = headers.get("origin")

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._origins.mark(MutableHeaders(scope=message), origin)
            await send(message)

        await self._app(scope, receive, send_marked)


def origin_in(raw: bytes | bytearray) -> str | None:
    """Return the origin in a head that was refused before it could be read; None where it has not come."""
    found = _ORIGIN_FIELD.search(raw)
    return None if found is None else found[1].rstrip().decode("latin-1")


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Return whether a browser asks whether its page may ask."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers
