"""Who may ask: keys where there are keys, else only callers that meant this machine. And which request this is.

An ASGI wrapper around the app, and no BaseHTTPMiddleware: that one runs the app in a task of its own, where a
disconnect is seen late or never.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..client.calls import new_rid
from ..protocol.api_keys import ApiKey, digest_of
from ..protocol.origins import (
    ANY,
    Host,
    Origin,
    is_address,
    is_localhost,
    is_this_machine,
    matches_host,
    matches_origin,
    read_host,
    read_origin,
)
from .config import BridgeSettings
from .cors import is_preflight
from .errors import BadApiKeyError, ForbiddenHostError, HttpError, refusal
from .key_ring import KeyRing
from .paths import FILES
from .standing import Standing

_PROBES: Final = ("/health", "/livez", "/readyz", "/startupz")
OPEN_PATHS: Final = frozenset({*_PROBES, *FILES})
"""Probes carry no key, and tell nothing about anybody's requests. The pages hold no datum at all."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
KEY: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")
"""What an Idempotency-Key looks like."""
_REPEATED: Final = 100
"""Characters of somebody else's header that an answer repeats."""


def request_id_of(headers: Mapping[str, str], rid: bytes) -> str:
    """Return the caller's id if it is one that may go into logs and headers, else our own in hex."""
    given = headers.get("x-request-id")
    return given if given and _REQUEST_ID.fullmatch(given) else rid.hex()


def rid_of(headers: Mapping[str, str], tenant: str, method: str, path: str) -> bytes | None:
    """Derive the name of a request on the wire from its Idempotency-Key; None without one, or one that is none.

    It is the same at every bridge; other tenants' never meet it.
    """
    key = headers.get("idempotency-key")
    if not key or not KEY.fullmatch(key):
        return None
    return hashlib.sha256(f"{tenant}\0{method}\0{path}\0{key}".encode()).digest()[:16]


class ApiKeys:
    """Finds the key of a request in its headers. By its digest, so that a near miss takes as long as any other.

    Of bytes, not of text: what stands in a header is ISO-8859-1 to some clients and UTF-8 to others, so a key with
    other letters than ASCII is known in both.
    """

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def __bool__(self) -> bool:
        return bool(self._ring)

    def key_of(self, headers: Mapping[str, str]) -> ApiKey:
        """Return the key that came with the request. Raises BadApiKeyError."""
        self._ring.look_on()
        scheme, *credentials = headers.get("authorization", "").split(maxsplit=1) or ("",)
        given = [headers.get("x-api-key", "").strip()]
        if scheme.lower() == "bearer":  # many clients send one whether or not it means anything: either may be right
            given += [credential.strip() for credential in credentials]
        if not any(given):
            raise BadApiKeyError("this bridge asks for a key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        why = "this key is not one of those that the bridge was given (API_KEYS)"
        for sent in given:
            key = self._ring.find(digest_of(sent.encode("latin-1", "replace")))  # as it came over the wire
            if key is None:
                continue
            why = self._ring.why_not(key)
            if not why:
                return key
        raise BadApiKeyError(why)


class AllowedNames:
    """The names that a bridge without keys answers to, and the pages that it lets ask.

    A page from elsewhere is refused, also one that made its name point here (DNS rebinding): a browser tells both.
    """

    def __init__(self, hosts: Sequence[Host], origins: Sequence[Origin]) -> None:
        self._hosts = hosts
        self._origins = origins
        self._let_in = ""  # the last name that was ours: callers repeat it, and reading a name takes a while

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuse a caller that did not mean this machine.

        Raises:
            ForbiddenHostError: Host is neither an address, nor this machine, nor allowed; or Origin is neither the host
                that was asked, nor this machine, nor allowed.
        """
        given, origin = headers.get("host", ""), headers.get("origin")
        if origin is None and given == self._let_in:
            return
        asked = read_host(given)
        if given and not self._is_ours(asked):  # no browser leaves it out
            raise ForbiddenHostError(_foreign_host(given, asked))
        self._let_in = given
        if origin is not None and not self._may_ask(read_origin(origin), asked):
            raise ForbiddenHostError(_foreign_page(origin))

    def _is_ours(self, host: Host | None) -> bool:
        if host is None:
            return False
        return is_this_machine(host.name) or any(matches_host(host, known) for known in self._hosts)

    def _may_ask(self, origin: Origin | None, asked: Host | None) -> bool:
        """Return whether a page may ask. Unlike a host, an address as origin is somebody else's page."""
        if origin is None:
            return False
        if any(matches_origin(origin, known) for known in self._origins):
            return True
        if not origin.host.name:
            return False  # "null": a file, or a frame that hides where it is from
        name = origin.host.name
        if is_localhost(name) or _is_loopback(name) or (asked is not None and name == asked.name):
            return True
        return any(known.name != ANY and matches_host(origin.host, known) for known in self._hosts)


def _is_loopback(name: str) -> bool:
    return name == "::1" or (name.startswith("127.") and is_address(name))


def _foreign_host(given: str, host: Host | None) -> str:
    text = f"this bridge has no API keys, so it does not answer to the name {given[:_REPEATED]!r}"
    if host is None:
        return f"{text}, which is no name of a host"
    name = Host(host.name)
    return f"{text}: allow it with --allow-host {name} (ZMQRT_ALLOW_HOST={name}), or give the bridge --api-keys"


def _foreign_page(given: str) -> str:
    text = f"this bridge has no API keys, so pages from {given[:_REPEATED]!r} may not use it"
    allowing = _allowing(given)
    return f"{text}: {allowing}, or give the bridge --api-keys" if allowing else f"{text}: that is no origin"


def _foreign_preflight(given: str) -> str:
    text = f"pages from {given[:_REPEATED]!r} may not read the answers of this bridge"
    allowing = _allowing(given)
    return f"{text}: {allowing}" if allowing else text


def _allowing(given: str) -> str:
    """Name the setting that would let pages of an origin in; "" where it is no origin."""
    origin = read_origin(given)
    return f"allow them with --cors-origin {origin} (ZMQRT_CORS_ORIGIN={origin})" if origin else ""


class Caller(NamedTuple):
    """Whose request it is, and which.

    rid: Its name on the wire: never the caller's, for two equal X-Request-Ids must not disturb one another.
    tenant: Whose key came with it; "" where there are no keys.
    refused: Why it is not let in; None = it is.
    key: That key, and what goes for it.
    standing: What becomes known of it on its way; None where nobody wants to know.
    """

    rid: bytes
    request_id: str
    tenant: str = ""
    refused: HttpError | None = None
    key: ApiKey | None = None
    standing: Standing | None = None


class Access:
    """Looks at each request before anybody answers it."""

    def __init__(
        self, settings: BridgeSettings, ring: KeyRing, is_noted: Callable[[ApiKey | None], bool] = lambda _: False
    ) -> None:
        self._keys = ApiKeys(ring)
        self._is_noted = is_noted
        self._names = None if settings.is_open_to_names else AllowedNames(settings.known_hosts, settings.known_origins)

    def caller_of(self, method: str, path: str, headers: Mapping[str, str]) -> Caller:
        """Return who asks, and by what names the request goes."""
        rid = new_rid()
        try:
            key = self._admit(method, path, headers)
        except (BadApiKeyError, ForbiddenHostError) as error:
            return Caller(rid, request_id_of(headers, rid), refused=error, standing=self._standing(None))
        tenant = key.tenant if key is not None else ""
        rid = rid_of(headers, tenant, method, path) or rid  # an answer that is given again has the ids that it had
        return Caller(rid, request_id_of(headers, rid), tenant, key=key, standing=self._standing(key))

    def _standing(self, key: ApiKey | None) -> Standing | None:
        return Standing() if self._is_noted(key) else None

    def _admit(self, method: str, path: str, headers: Mapping[str, str]) -> ApiKey | None:
        if is_preflight(method, headers):  # of an origin that is not allowed: else it has been answered
            raise ForbiddenHostError(_foreign_preflight(headers["origin"]))
        if not self._keys:
            if self._names is not None:
                self._names.check(headers)
            return None
        return None if path in OPEN_PATHS or method == "OPTIONS" else self._keys.key_of(headers)


class AccessCheck:
    """Check each request before the app sees it, and give every answer the request's id."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        method, path = str(scope["method"]), str(scope["path"])
        caller = self._access.caller_of(method, path, Headers(scope=scope))
        scope.setdefault("state", {}).update(request_id=caller.request_id, tenant=caller.tenant, key=caller.key)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = caller.request_id
            await send(message)

        app = self._app if caller.refused is None else refusal(caller.refused, path, caller.request_id)
        await app(scope, receive, send_with_id)
