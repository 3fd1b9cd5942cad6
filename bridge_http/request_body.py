"""Reads bodies within their limits, and notices when a caller has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from .config import BridgeSettings
from .errors import BodiesFullError, BodyTooLargeError, BodyTooSlowError, EncodedBodyError

_MOST_BYTES: Final = 256 << 20
"""Of unfinished bodies in all: 64 of the largest. Without it each connection could hold one, 64 GiB of them."""
_SMALL_BYTES: Final = 64 << 10
"""So much of each body is not counted: usual requests are let in while large ones are told to come back."""
T = TypeVar("T")


class BodyReader:
    """The bodies that are being read, all of one bridge, within one bound."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._limit_bytes = settings.body_limit_bytes
        self._timeout_s = settings.body_timeout_s
        self.room_bytes = max(_MOST_BYTES, settings.body_limit_bytes)

    async def read(self, request: Request) -> bytes:
        """Read a body, counting while it comes: a length that was promised is not trusted, and may be absent.

        Raises:
            BodyTooLargeError: (413)
            BodyTooSlowError: (408) it was not there in time.
            EncodedBodyError: (415) it is compressed.
            BodiesFullError: (503) others leave no room for it.
            ClientDisconnect: the caller left before its end.
        """
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise EncodedBodyError(coding)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(request.headers, request.receive)
        except TimeoutError:
            raise BodyTooSlowError(self._timeout_s) from None

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > self._limit_bytes:
            raise BodyTooLargeError(self._limit_bytes)
        body, held = bytearray(), 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > self._limit_bytes:
                    raise BodyTooLargeError(self._limit_bytes)
                more = max(0, len(body) - _SMALL_BYTES - held)
                if more > self.room_bytes:
                    raise BodiesFullError
                self.room_bytes -= more
                held += more
                if not message.get("more_body", False):
                    return bytes(body)
        finally:
            self.room_bytes += held


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
