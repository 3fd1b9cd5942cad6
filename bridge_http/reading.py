"""What comes in over HTTP after the headers: the body under a limit, and the news that the caller has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from .config import BridgeSettings
from .errors import BodyTooLargeError, BodyTooSlowError, EncodedBodyError

T = TypeVar("T")


async def read_body(request: Request, settings: BridgeSettings) -> bytes:
    """Read a body, counting while it comes: a length that was promised is not trusted, and may be absent.

    Raises:
        BodyTooLargeError: (413)
        BodyTooSlowError: (408) it was not there in time.
        EncodedBodyError: (415) it is compressed.
        ClientDisconnect: the caller left before its end.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise EncodedBodyError(coding)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            return await _read(request.headers, request.receive, settings.body_limit_bytes)
    except TimeoutError:
        raise BodyTooSlowError(settings.body_timeout_s) from None


async def _read(headers: Headers, receive: Receive, limit_bytes: int) -> bytes:
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > limit_bytes:
        raise BodyTooLargeError(limit_bytes)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > limit_bytes:
            raise BodyTooLargeError(limit_bytes)
        if not message.get("more_body", False):
            return bytes(body)


async def until_gone(receive: Receive) -> None:
    """Return when the caller has left. ASGI tells it nowhere else before the answer begins."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Do the work, and cancel it as soon as its caller leaves. Raises ClientDisconnect then."""
    doing = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)
