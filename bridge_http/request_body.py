"""Reads bodies within their limits, and notices when a caller has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from .config import BridgeSettings
from .errors import RefusedError
from .exchange import LEAVING, WHOLE_BODY

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

    async def read(self, headers: Mapping[str, str], scope: Scope, receive: Receive) -> bytes:
        """Read a body, counting while it comes: a length that was promised is not trusted, and may be absent.

        Raises:
            RefusedError: it is too large (413), was not there in time (408), is compressed (415), or others leave no
                room for it (503).
            ClientDisconnect: the caller left before its end.
        """
        coding = headers.get("content-encoding")
        if coding is not None and (coding := coding.strip().lower()) not in ("", "identity"):
            text = f"content-encoding {coding[:40]!r} is not understood here: send the body as it is"
            raise RefusedError(415, "encoded_body", text, {"accept-encoding": "identity"})
        whole: Callable[[], bytes | None] | None = scope.get("extensions", {}).get(WHOLE_BODY)
        if whole is not None and (body := whole()) is not None:  # as usual; it is in memory already
            if len(body) > self._limit_bytes:
                raise self._too_large()
            return body
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._read(headers, receive)
        except TimeoutError:
            text = f"the body was not there within {self._timeout_s:g} s, the limit of this bridge (--body-timeout)"
            raise RefusedError(408, "too_slow", text, {"connection": "close"}) from None

    async def _read(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        declared = headers.get("content-length", "")
        if declared.isdigit() and int(declared[:20]) > self._limit_bytes:
            raise self._too_large()
        body, held = bytearray(), 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > self._limit_bytes:
                    raise self._too_large()
                more = max(0, len(body) - _SMALL_BYTES - held)
                if more > self.room_bytes:
                    text = "this bridge is reading as many large bodies as it has room for; come back in a moment"
                    raise RefusedError(503, "bodies_full", text)
                self.room_bytes -= more
                held += more
                if not message.get("more_body", False):
                    return bytes(body)
        finally:
            self.room_bytes += held

    def _too_large(self) -> RefusedError:
        text = f"the body is larger than {self._limit_bytes} bytes, the limit of this bridge (--body-limit)"
        return RefusedError(413, "too_large", text)


async def until_gone(receive: Receive) -> None:
    """Return when the caller has left. ASGI itself tells it nowhere else before the answer begins."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(work: Coroutine[Any, Any, T], scope: Scope, receive: Receive) -> T:
    """Do the work, and cancel it as soon as its caller leaves. Raises ClientDisconnect then."""
    tell = scope.get("extensions", {}).get(LEAVING)
    if tell is None:
        return await _unless_gone_elsewhere(work, receive)
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    def leave() -> None:
        nonlocal is_gone
        is_gone = True
        task.cancel()

    tell(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not is_gone or task.uncancel():  # somebody else has cancelled it, too
            raise
        raise ClientDisconnect from None
    finally:
        tell(None)


async def _unless_gone_elsewhere(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Do the same on a server that is not ours, with a task that waits for nothing but the caller's leaving."""
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
