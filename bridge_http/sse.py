"""Server-sent events: how one is written, who asks for them, and an answer that sends them as a generator yields them.

A failure before the first event still gets its HTTP status: the headers wait for that event, but never longer than one
keep-alive. A caller who leaves ends the work at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .json_body import encode
from .request_body import until_gone

Events = AsyncGenerator[bytes, None]
MEDIA_TYPE: Final = "text/event-stream; charset=utf-8"
HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""A proxy that buffers or caches would hold the tokens back until the end."""
KEEP_ALIVE: Final = b": still here\n"
"""A comment without the empty line that would end an event: some readers take every empty line for one, and choke on
its missing data. So it belongs to the next event, where it is a line that says nothing."""
KEEP_ALIVE_S: Final = 15.0
"""Proxies cut connections that are silent for 30 to 60 s."""
log = logging.getLogger(__name__)


def event(name: str, data: object, *, id_: str = "") -> bytes:
    """Write one event; its data is one line of JSON."""
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {name}\ndata: ".encode() + encode(data) + b"\n\n"


def wants_stream(accept: str) -> bool:
    """Return whether an Accept header asks for events (a weight of 0 refuses them)."""
    for choice in accept.lower().split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        if media == "text/event-stream":
            return not any(parameter in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
    return False


class EventStream(Response):
    """Send what a generator of events yields.

    Args:
        events: What goes out. An exception before the first event is raised here, for the framework to answer.
        close: Called once, when nobody reads any more.
        idle: What to send when nothing has come for a while.
        failure: The last event of a stream that failed after its status had gone out.
    """

    def __init__(
        self,
        events: Events,
        *,
        close: Callable[[], None],
        idle: Callable[[], bytes],
        failure: Callable[[Exception], bytes],
        request_id: str = "",
    ) -> None:
        super().__init__(None, headers=HEADERS, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._idle = idle
        self._failure = failure
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        """Answer the request."""
        feeding = asyncio.ensure_future(self._feed(send))
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

    async def _feed(self, send: Send) -> None:
        has_begun = False
        try:
            async with contextlib.aclosing(kept_alive(self._events, self._idle, KEEP_ALIVE_S)) as pieces:
                async for piece in pieces:
                    if not has_begun:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        has_begun = True
                    await _send_part(send, piece)
        except Exception as error:
            if not has_begun:
                raise
            log.info("stream failed: %s", error, extra={"request_id": self._request_id})
            await _send_part(send, self._failure(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_part(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})


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
