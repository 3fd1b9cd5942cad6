"""Carries one request to the app and its answer back: ASGI on one side, the bytes of a connection on the other."""

from __future__ import annotations

import asyncio
import http
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from starlette.types import ASGIApp, Message, Scope

from .heads import Field, Head

BODY_AHEAD_BYTES: Final = 64 << 10
"""Of a body that its reader has not asked for, so much is kept; then nothing more is read from the socket."""
LEAVING: Final = "zmqrt.leaving"
"""Extension of a scope: takes what is to be called when the caller leaves."""
WHOLE_BODY: Final = "zmqrt.whole_body"
"""Extension of a scope: returns the body if all of it has come, else None; so nobody has to wait for what is here."""
HEADERS: Final = "zmqrt.headers"
"""Extension of a scope: its headers as text, by names in small letters."""
ANSWER: Final = "zmqrt.answer"
"""Extension of a scope: sends a whole answer (status, fields, body). Whoever wraps `send` to see answers removes it."""
_CLIENT_GONE: Final = 499
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_VERSION: Final = b"HTTP/1.1 "
_FIELDS: Final = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*")
_WITHOUT_BODY: Final = (204, 304)
log = logging.getLogger(__name__)
access_log = logging.getLogger("uvicorn.access")


class _Wire(Protocol):
    """What an exchange asks of its connection (`connection.py` says what each does)."""

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def want_body(self) -> None: ...
    def answered(self) -> None: ...
    def cut_short(self) -> None: ...


def _status_line(status: int) -> bytes:
    phrase = http.HTTPStatus(status).phrase if status in http.HTTPStatus.__members__.values() else ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 600)}


class Exchange:
    """One request and its answer.

    An answer has a length, or comes in chunks, or (to HTTP/1.0) ends with its connection.
    """

    _has_news = False  # that `receive` has not told yet
    _news: asyncio.Event | None = None  # made for an app that waits; most bodies are here at once
    _on_left: Callable[[], object] | None = None
    _sent_ahead = 0  # bytes of an answer's first line that went out ahead, to see whether anybody is there
    _left: int | None = None  # bytes of an answer that has a length; None: it has none
    _is_chunked = False
    _held_head = b""
    has_whole_body = False
    is_left = False
    has_started = False
    is_complete = False

    def __init__(self, head: Head, scope: Scope, wire: _Wire, default_fields: Sequence[Field], *, logs: bool) -> None:
        self._head = head
        scope["extensions"] = {
            LEAVING: self.on_left,
            WHOLE_BODY: self.whole_body,
            HEADERS: head.headers,
            ANSWER: self.answer,
        }
        self._scope = scope
        self._wire = wire
        self._default_fields = default_fields
        self._logs = logs
        self._body = bytearray()
        self._waits_for_continue = head.expects_continue
        self.keeps_alive = head.keeps_alive

    # Called by the connection.

    def feed(self, piece: bytes) -> None:
        """Take a piece of the body. Nobody asks for it after the answer."""
        if not self.is_complete:
            self._body += piece
            self._tell()

    @property
    def origin(self) -> str | None:
        """Which page asked."""
        return self._head.headers.get("origin")

    @property
    def is_ahead(self) -> bool:
        """Whether more of the body is here than should be before somebody asks for it."""
        return len(self._body) > BODY_AHEAD_BYTES

    def end_body(self) -> None:
        """Note that the body is complete."""
        self.has_whole_body = True
        self._tell()

    def leave(self) -> None:
        """Note that the caller has left; the app is told as soon as it asks."""
        self.is_left = not self.is_complete
        self._tell()
        if self.is_left and self._on_left is not None:
            self._on_left()

    def probe(self) -> bytes:
        """Return a byte that changes no answer, for a caller who may have left: if so, its machine says so.

        Every answer begins with the same letters, and a chunk's length may have zeros before it.
        """
        if not self.has_started:
            byte = _VERSION[self._sent_ahead : self._sent_ahead + 1]
            self._sent_ahead += len(byte)
            return byte
        return b"0" if self._is_chunked and not self.is_complete else b""

    # Called by the app.

    async def run(self, app: ASGIApp) -> None:
        """Let the app answer, and answer for it where it fails."""
        try:
            await app(self._scope, self.receive, self.send)
            if not self.is_complete and not self.is_left:
                log.error("an answer has no end: %s %s", self._head.method, self._scope["path"])
                await self._fail()
        except asyncio.CancelledError:  # the time to drain is over
            await self._fail()
        except Exception:
            log.exception("an answer broke off")
            await self._fail()
        if self._logs and not self.has_started:
            self._log_access(_CLIENT_GONE)
        self._scope.pop("extensions")  # which lead back here: no garbage is left that has to be looked for

    async def _fail(self) -> None:
        if self.is_complete:
            return
        if self.has_started or self.is_left:
            self._wire.cut_short()
            return
        body = b"Internal Server Error"
        fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        self._start(500, fields)
        self._continue(body, is_last=True)

    def on_left(self, call: Callable[[], object] | None) -> None:
        """Have `call` called when the caller leaves, at once if it has left; None = nobody any more.

        Offered in the scope, as LEAVING says: so nobody needs a task that waits in `receive`.
        """
        self._on_left = call
        if call is not None and self.is_left:
            call()

    def whole_body(self) -> bytes | None:
        """Return the body if all of it has come and its caller is there; WHOLE_BODY offers it in the scope."""
        if self.is_left or self.is_complete or not self.has_whole_body:
            return None
        self._waits_for_continue = False
        body, self._body = bytes(self._body), bytearray()
        return body

    async def receive(self) -> Message:
        """Give the app the next piece of the body, or the news that its caller has left."""
        if self._waits_for_continue and not self.has_whole_body and not self._body:
            self._wire.write(_CONTINUE)
        self._waits_for_continue = False
        if not self.is_left and not self.is_complete:
            self._wire.want_body()
            await self._wait_for_news()
        if self.is_left or self.is_complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not self.has_whole_body}

    def _tell(self) -> None:
        self._has_news = True
        if self._news is not None:
            self._news.set()

    async def _wait_for_news(self) -> None:
        if not self._has_news:
            self._news = self._news or asyncio.Event()
            self._news.clear()
            await self._news.wait()
        self._has_news = False

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        await self._wire.drain()
        if message["type"] == "http.response.body" and self.has_started and not self.is_complete:
            self._continue(message.get("body", b""), is_last=not message.get("more_body", False))
        elif message["type"] == "http.response.start" and not self.has_started:
            self._start(message["status"], message.get("headers", ()))
        elif not self.is_left:
            raise RuntimeError(f"{message['type']} is out of turn")

    async def answer(self, status: int, fields: Iterable[Field], body: bytes) -> None:
        """Send a whole answer; ANSWER offers it in the scope."""
        await self._wire.drain()
        self._start(status, fields)
        self._continue(body, is_last=True)

    def _start(self, status: int, fields: Iterable[Field]) -> None:
        self.has_started = True
        if self._logs:
            self._log_access(status)
        if self.is_left:
            return
        if self._waits_for_continue and not self.has_whole_body:
            self.keeps_alive = False  # it may send the body or not, so what comes next cannot be told
        self._waits_for_continue = False  # too late: it would stand within the answer
        written = self._fields((*self._default_fields, *fields))
        head = b"".join((STATUS_LINES[status][self._sent_ahead :], written, *self._frame(status), b"\r\n"))
        if self._left:  # its body is there, and goes out with it
            self._held_head = head
        else:
            self._wire.write(head)

    def _fields(self, fields: Sequence[Field]) -> bytes:
        """Write the fields of an answer; those about its frame are looked at, and `connection` is written with it."""
        lines = 0
        written = b""
        for name, value in fields:
            name = name.lower()  # noqa: PLW2901
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection":
                self.keeps_alive = self.keeps_alive and value.lower() != b"close"
                continue
            written += b"%s: %s\r\n" % (name, value)
            lines += 1
        if not _FIELDS.fullmatch(written) or written.count(b"\n") > lines:
            raise RuntimeError("a field of an answer cannot be written: it would end the line")
        return written

    def _frame(self, status: int) -> list[bytes]:
        """Decide where the answer ends, and say so."""
        lines: list[bytes] = []
        if self._head.method == "HEAD" or status in _WITHOUT_BODY:
            self._left = None
        elif self._left is None and self._head.version == "1.1":
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        elif self._left is None:
            self.keeps_alive = False
        if not self.keeps_alive:
            lines.append(b"connection: close\r\n")
        elif self._head.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        return lines

    def _continue(self, body: bytes, *, is_last: bool) -> None:
        if not self.is_left:
            body = self._framed(body, is_last=is_last)
            if self._held_head:
                body, self._held_head = self._held_head + body, b""
            self._wire.write(body)
        if is_last:
            self.is_complete = True
            self._body.clear()
            self._tell()
            if not self.is_left:
                self._wire.answered()

    def _framed(self, body: bytes, *, is_last: bool) -> bytes:
        if self._head.method == "HEAD":
            return b""
        if self._is_chunked:
            chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            return chunk + b"0\r\n\r\n" if is_last else chunk
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (is_last and self._left):
                raise RuntimeError("an answer has another length than it said")
        return body

    def _log_access(self, status: int) -> None:
        query = b"?" + self._head.query if self._head.query else b""
        target = (self._head.raw_path + query).decode("ascii")
        caller: Any = self._scope["client"]
        peer = f"{caller[0]}:{caller[1]}" if caller else ""
        access_log.info('%s - "%s %s HTTP/%s" %d', peer, self._head.method, target, self._head.version, status)
