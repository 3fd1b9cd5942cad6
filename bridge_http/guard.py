"""Who may ask: keys where there are keys, else only callers that meant this machine. And which request this is.

Decisions as plain functions, and one ASGI wrapper around the app that applies them. It is no BaseHTTPMiddleware: that
one runs the app in a task of its own, where a disconnect is seen late or never.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..client.calls import new_rid
from . import page
from .config import BridgeSettings
from .errors import MEDIA_TYPE, ForbiddenHostError, UnauthorizedError, answer
from .openai.errors import answer as openai_answer

_PROBES: Final = ("/health", "/livez", "/readyz", "/startupz")
OPEN_PATHS: Final = frozenset({*_PROBES, "/openapi.json", "/docs", *page.FILES})
"""Probes carry no key, and tell nothing about anybody's requests. The pages hold no datum at all."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_of(headers: Mapping[str, str], rid: bytes) -> str:
    """Return the caller's id if it is one that may go into logs and headers, else our own in hex."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else rid.hex()


def is_openai(path: str) -> bool:
    """Say whether an answer has to have OpenAI's shape."""
    return path.startswith("/v1/")


class Keys:
    """The keys that are let in. Kept as digests, so that a look-up takes as long for a near miss as for any other."""

    def __init__(self, tenants: Mapping[str, str]) -> None:
        self._tenants = {_digest(key): tenant for key, tenant in tenants.items()}

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def tenant_of(self, headers: Mapping[str, str]) -> str:
        """Return whose key came with the request. Raises UnauthorizedError."""
        key = headers.get("x-api-key", "")
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            key = credentials.strip()
        if not key:
            raise UnauthorizedError("this bridge asks for a key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        tenant = self._tenants.get(_digest(key))
        if tenant is None:
            raise UnauthorizedError("this key is not one of those that the bridge was given (API_KEYS)")
        return tenant


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def check_origin(headers: Mapping[str, str], allowed: frozenset[str]) -> None:
    """Refuse a page from elsewhere, also one that made its name point here (DNS rebinding): a browser tells both.

    Raises:
        ForbiddenHostError: Host is neither an address, nor localhost, nor allowed; or Origin is neither the host that
            was asked, nor this machine, nor allowed.
    """
    host = headers.get("host", "")
    asked = _name_of(f"//{host}")
    if host and not _is_ours(asked, allowed):  # no browser leaves it out
        raise ForbiddenHostError(f"this bridge has no API keys, so it does not answer to the name {host[:100]!r}")
    origin = headers.get("origin")
    if origin is not None and not _may_ask(_name_of(origin), asked, allowed):
        raise ForbiddenHostError(f"this bridge has no API keys, so pages from {origin[:100]!r} may not use it")


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_ours(name: str, allowed: frozenset[str]) -> bool:
    if name == "localhost" or name in allowed:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True  # an address cannot be made to point elsewhere


def _may_ask(origin: str, asked: str, allowed: frozenset[str]) -> bool:
    """Say whether a page may ask. Unlike a host, an address as origin is somebody else's page."""
    if not origin:
        return False  # "null": a file, or a frame that hides where it is from
    if origin in ("localhost", asked) or origin in allowed:
        return True
    try:
        return ipaddress.ip_address(origin).is_loopback
    except ValueError:
        return False


class Guard:
    """Check each request before the app sees it, and give every answer the request's id."""

    def __init__(self, app: ASGIApp, settings: BridgeSettings) -> None:
        self._app = app
        self._keys = Keys(settings.tenants)
        self._allowed = frozenset(name.lower() for name in settings.allow_host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        rid = new_rid()  # never the caller's: two equal X-Request-Ids must not disturb one another
        request_id = request_id_of(headers, rid)
        state = scope.setdefault("state", {})
        state.update(rid=rid, request_id=request_id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            state["tenant"] = self._admit(str(scope["path"]), headers)
        except (UnauthorizedError, ForbiddenHostError) as error:
            said = openai_answer(error) if is_openai(str(scope["path"])) else answer(error, request_id)
            refusal = Response(said.body, said.status, said.headers, MEDIA_TYPE)
            await refusal(scope, receive, send_with_id)
            return
        await self._app(scope, receive, send_with_id)

    def _admit(self, path: str, headers: Mapping[str, str]) -> str:
        if not self._keys:
            check_origin(headers, self._allowed)
            return ""
        return "" if path in OPEN_PATHS else self._keys.tenant_of(headers)
