"""Server-sent events: who asks for them, and an answer that sends them as a generator yields them.

A failure before the first event still gets its HTTP status: the headers wait for that event, but never longer than one
keep-alive. A caller who leaves ends the work at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .request_body import unless_gone

Events = AsyncGenerator[bytes, None]
MEDIA_TYPE: Final = "text/event-stream; charset=utf-8"
HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""A proxy that buffers or caches would hold the tokens back until the end."""
KEEP_ALIVE_S: Final = 15.0
"""Proxies cut connections that are silent for 30 to 60 s."""
_TICK_S: Final = 0.001
"""Clocks of loops count milliseconds, so a timer may come this much early."""
log = logging.getLogger(__name__)


def wants_stream(accept: str) -> bool:
    """Return whether an Accept header asks for events (a weight of 0 refuses them)."""
    accept = accept.lower()
    if "text/event-stream" not in accept:
        return False
    for choice in accept.split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        if media == "text/event-stream":
            return not any(parameter in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
    return False


class KeepAlives:
    """One timer for all streams: it rings each that has been silent for KEEP_ALIVE_S, and again."""

    def __init__(self) -> None:
        self._streams: set[EventStream] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, stream: EventStream) -> None:
        """Count its silence from now on."""
        loop = asyncio.get_running_loop()
        stream.spoke_at = loop.time()
        self._streams.add(stream)
        if self._timer is None:
            self._timer = loop.call_later(KEEP_ALIVE_S, self._ring)

    def remove(self, stream: EventStream) -> None:
        """Ring it no more."""
        self._streams.discard(stream)

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for stream in list(self._streams):
            if now - stream.spoke_at >= KEEP_ALIVE_S - _TICK_S:
                stream.spoke_at = now
                stream.ring()
        first = min((stream.spoke_at for stream in self._streams), default=None)
        self._timer = None if first is None else loop.call_later(first + KEEP_ALIVE_S - now, self._ring)


class EventStream(Response):
    """Send what a generator of events yields.

    Args:
        events: What goes out. An exception before the first event is raised here, for the framework to answer.
        close: Called once, when nobody reads any more.
        idle: What to send when nothing has come for a while.
        failure: The last event of a stream that failed after its status had gone out.
        keep_alives: What rings when nothing has come for a while.
    """

    def __init__(
        self,
        events: Events,
        *,
        close: Callable[[], None],
        idle: Callable[[], bytes],
        failure: Callable[[Exception], bytes],
        keep_alives: KeepAlives,
        request_id: str = "",
    ) -> None:
        super().__init__(None, headers=HEADERS, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._idle = idle
        self._failure = failure
        self._keep_alives = keep_alives
        self.has_begun = False
        self.spoke_at = 0.0
        self._is_over = False
        self._is_sending = False  # what comes next of the events
        self._idling: asyncio.Task[None] | None = None
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request."""
        self._send = send
        try:
            with contextlib.suppress(ClientDisconnect):
                await unless_gone(self._feed(), scope, receive)
        finally:
            self._is_over = True
            await self._events.aclose()
            self._close()

    async def _feed(self) -> None:
        try:
            self._keep_alives.add(self)
            async for piece in self._events:
                await self._send_part(piece)
        except Exception as error:
            if not self.has_begun:
                raise
            log.info("stream failed: %s", error, extra={"request_id": self._request_id})
            await self._send_part(self._failure(error))
        finally:
            self._keep_alives.remove(self)
        await self._send_part(b"", is_last=True)

    def ring(self) -> None:
        """Send what is sent when nothing has come for a while."""
        is_idling = self._idling is not None and not self._idling.done()
        if not (self._is_sending or is_idling):  # else its reader has not even taken what came before
            self._idling = asyncio.ensure_future(self._send_idle())

    async def _send_idle(self) -> None:
        if not self._is_over:
            await self._begin()
            await self._send({"type": "http.response.body", "body": self._idle(), "more_body": True})

    async def _send_part(self, piece: bytes, *, is_last: bool = False) -> None:
        """Send what comes next of the events; two may have something to say: they, and the silence between them."""
        self._is_sending = True
        if self._idling is not None:
            await asyncio.wait([self._idling])
            self._idling = None
        self._is_over = is_last
        if not self.has_begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": piece, "more_body": not is_last})
        self._is_sending = False
        self.spoke_at = asyncio.get_running_loop().time()

    async def _begin(self) -> None:
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
