"""One request and its answer, without a socket."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from zmqrt.bridge_http.exchange import ANSWER, Exchange
from zmqrt.bridge_http.heads import read_head

DATE = (b"date", b"today")


class Wire:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    async def drain(self) -> None:
        """Have room."""

    def want_body(self) -> None:
        """Have read all."""

    def answered(self) -> None:
        """Go on."""

    def cut_short(self) -> None:
        """Close."""


def exchange(wire: Wire, raw: bytes = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") -> Exchange:
    """Begin one."""
    scope: dict[str, Any] = {"type": "http", "path": "/", "client": None}
    return Exchange(read_head(raw), scope, wire, [DATE], logs=False)


def answering(fields: list[tuple[bytes, bytes]], body: bytes) -> ASGIApp:
    """Make an app that answers so."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": body})

    return app


def test_an_answer_with_a_length_goes_out_in_one_piece() -> None:
    """Names in small letters, whatever the app wrote; about the connection the head of the request decides."""
    wire = Wire()
    asyncio.run(exchange(wire).run(answering([(b"Content-Length", b"2"), (b"Connection", b"close")], b"ok")))

    assert wire.written == b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


def test_a_whole_answer_goes_out_as_one_in_parts_does() -> None:
    """What its server offers an app saves it two messages; the bytes are the same."""
    fields, whole, parts = [(b"Content-Length", b"2"), (b"a", b"b")], Wire(), Wire()

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        await scope["extensions"][ANSWER](200, fields, b"ok")

    asyncio.run(exchange(whole).run(app))
    asyncio.run(exchange(parts).run(answering(fields, b"ok")))

    assert whole.written == parts.written != b""


@pytest.mark.parametrize("field", [(b"a", b"1\r\nb: 2"), (b"a", b"\n"), (b"a\r\nb", b"1"), (b"a:b", b""), (b"", b"")])
def test_a_field_that_would_end_its_line_is_not_written(field: tuple[bytes, bytes]) -> None:
    """Nor anything else: whoever had a word in it would write the rest of the answer."""
    wire = Wire()
    asyncio.run(exchange(wire).run(answering([field], b"")))

    assert wire.written == b""


def test_what_is_over_leaves_no_garbage_to_look_for() -> None:
    """Else the collector finds some of each request, and looks for it in the others that live."""
    one = exchange(Wire())
    gc.disable()
    try:
        asyncio.run(one.run(answering([], b"")))
        alive = weakref.ref(one)
        del one
        assert alive() is None
    finally:
        gc.enable()
