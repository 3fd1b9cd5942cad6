"""One answer as server-sent events: what a generator yields goes out as it comes.

A failure before the first event still gets its HTTP status: the headers wait for that event, but never longer than one
keep-alive. A caller who leaves ends the work at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from . import sse
from .errors import MEDIA_TYPE, Answer
from .request_body import until_gone

Events = AsyncGenerator[bytes, None]
log = logging.getLogger(__name__)


class Shape(Protocol):
    """What a failure looks like to whoever reads this stream."""

    request_id: str

    def idle(self) -> bytes:
        """Say that it goes on, though there is nothing to tell."""
        ...

    def before(self, error: Exception) -> Answer:
        """Answer with a status: nothing has been sent yet."""
        ...

    def within(self, error: Exception) -> bytes:
        """End with an event: the status has gone out."""
        ...


class EventStream(Response):
    """Send what a generator of events yields; `close` is called once, when nobody reads any more."""

    def __init__(self, events: Events, close: Callable[[], None], shape: Shape) -> None:
        super().__init__(None)
        self._events = events
        self._close = close
        self._shape = shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        feeding = asyncio.ensure_future(self._feed(scope, receive, send))
        watching = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait((feeding, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (feeding, watching):
                task.cancel()
            await asyncio.gather(feeding, watching, return_exceptions=True)
            await self._events.aclose()
            self._close()
        if not feeding.cancelled():
            feeding.result()

    async def _feed(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False
        try:
            async with contextlib.aclosing(kept_alive(self._events, self._shape.idle, sse.KEEP_ALIVE_S)) as pieces:
                async for piece in pieces:
                    if not has_begun:
                        await send(_start())
                        has_begun = True
                    await send(_part(piece))
        except Exception as error:  # noqa: BLE001 - whatever happened becomes the caller's answer, or their last event
            log.info("stream failed: %s", error, extra={"request_id": self._shape.request_id})
            if not has_begun:
                said = self._shape.before(error)
                await Response(said.body, said.status, said.headers, MEDIA_TYPE)(scope, receive, send)
                return
            await send(_part(self._shape.within(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def kept_alive(events: Events, idle: Callable[[], bytes], every_s: float) -> AsyncGenerator[bytes, None]:
    """Yield the events, and what `idle` says whenever none has come for a while."""
    pending = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait({pending}, timeout=every_s)
            if not pending.done():
                yield idle()
                continue
            piece = pending.result()
            if piece is None:
                return
            yield piece
            pending = asyncio.ensure_future(anext(events, None))
    finally:
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)


def _start() -> Message:
    headers = {"content-type": sse.MEDIA_TYPE, **sse.HEADERS}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def _part(piece: bytes) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": True}
