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
    for choice in accept.lower().split(","):
        media, *parameters = (part.strip() for part in choice.split(";"))
        if media == "text/event-stream":
            return not any(parameter in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
    return False


class KeepAlives:
    """One timer for all streams: it rings each that has been silent for KEEP_ALIVE_S, and again."""

    def __init__(self) -> None:
        self._since: dict[EventStream, float] = {}  # who has been silent longest comes first
        self._timer: asyncio.TimerHandle | None = None

    def start(self, stream: EventStream) -> None:
        """Count its silence from now on."""
        loop = asyncio.get_running_loop()
        self._since.pop(stream, None)
        self._since[stream] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(KEEP_ALIVE_S, self._ring)

    def stop(self, stream: EventStream) -> None:
        """Ring it no more."""
        self._since.pop(stream, None)

    def _ring(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for stream, since in list(self._since.items()):
            if now - since < KEEP_ALIVE_S - _TICK_S:
                break
            self.start(stream)  # which sets no timer while this one is ringing
            stream.ring()
        first = next(iter(self._since.values()), None)
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
        self._sending = asyncio.Lock()  # two may have something to say: the events, and the silence between them
        self.has_begun = False
        self._is_over = False
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
            self._keep_alives.start(self)
            async for piece in self._events:
                await self._send_part(piece)
                self._keep_alives.start(self)
        except Exception as error:
            if not self.has_begun:
                raise
            log.info("stream failed: %s", error, extra={"request_id": self._request_id})
            await self._send_part(self._failure(error))
        finally:
            self._keep_alives.stop(self)
        async with self._sending:
            self._is_over = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def ring(self) -> None:
        """Send what is sent when nothing has come for a while."""
        if not self._sending.locked():  # else its reader has not even taken what came before
            self._idling = asyncio.ensure_future(self._send_part(None))

    async def _send_part(self, piece: bytes | None) -> None:
        """Send one; None = what `idle` says now."""
        async with self._sending:
            if self._is_over:
                return
            if not self.has_begun:
                self.has_begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            body = self._idle() if piece is None else piece
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
