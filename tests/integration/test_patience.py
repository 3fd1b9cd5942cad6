"""A server of the bridge and raw sockets: heads that do not end, readers that do not read."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from functools import partial

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from support.served import Address, connect, event_stream, read_all
from support.served import serving as serving_app
from support.stack import eventually

pytestmark = pytest.mark.integration


class Served:
    """An app that pours events without end, or says hello; it notes whose stream was closed."""

    def __init__(self, size: int = 65536) -> None:
        self._event = b"data: " + b"x" * size + b"\n\n"
        self.poured = 0
        self.closed = 0

    async def pour(self, _request: Request) -> Response:
        """Answer with more than any buffer holds."""
        return event_stream(self._events(), self._close)

    async def hello(self, _request: Request) -> Response:
        """Answer at once."""
        return PlainTextResponse("hello")

    async def _events(self) -> AsyncGenerator[bytes]:
        while True:
            self.poured += 1
            yield self._event

    def has_closed(self, count: int) -> bool:
        """Whether so many streams have been closed."""
        return self.closed == count

    def _close(self) -> None:
        self.closed += 1


def serving(served: Served, **limits: float) -> AbstractContextManager[Address]:
    """Serve both."""
    return serving_app(Starlette(routes=[Route("/pour", served.pour), Route("/", served.hello)]), **limits)


def test_a_reader_that_resets_its_connection_ends_a_stream_that_never_waits() -> None:
    """What is sent to nobody is never held up: the one who sends must let the news of it through."""
    served = Served(size=100)
    with serving(served) as address:
        for _ in range(20):
            before = served.closed
            with connect(address) as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                caller.sendall(b"GET /pour HTTP/1.1\r\nhost: x\r\n\r\n")
                caller.recv(1000)
            eventually(partial(served.has_closed, before + 1), within_s=5, what="the end of the stream")


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nhost: x\r\nsome: "])
def test_a_head_that_does_not_end_is_not_waited_for(said: bytes) -> None:
    """Nothing at all, and half of a head: many such connections would be an attack."""
    with serving(Served(), head_timeout_s=0.3) as address, connect(address) as caller:
        caller.sendall(said)

        assert read_all(caller) == b""


def test_the_clock_runs_for_each_head_anew_and_not_for_the_rest() -> None:
    """A connection that is kept may be as slow as one that is new."""
    with serving(Served(), head_timeout_s=0.5) as address, connect(address) as caller:
        for _ in range(2):
            caller.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"hello"):
                answer += caller.recv(65536)
        caller.sendall(b"GET / HTT")

        assert read_all(caller) == b""


def test_a_reader_that_does_not_read_is_cut_off_and_its_work_ends() -> None:
    """And the one beside it is served meanwhile."""
    served = Served()
    with serving(served, write_timeout_s=0.5) as address:
        with connect(address) as stuck, connect(address) as other:
            stuck.sendall(b"GET /pour HTTP/1.1\r\nhost: x\r\n\r\n")
            other.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

            assert read_all(other).endswith(b"hello")
            eventually(lambda: served.closed == 1, what="the end of the work")
            poured = served.poured
            assert not read_all(stuck).endswith(b"0\r\n\r\n"), "the end of an answer that has none"
        assert served.poured == poured


def test_a_reader_that_is_slow_but_reads_is_served_on() -> None:
    """Longer than the limit, as long as it takes what piles up."""
    served = Served()
    with serving(served, write_timeout_s=0.5) as address, connect(address) as caller:
        caller.sendall(b"GET /pour HTTP/1.1\r\nhost: x\r\n\r\n")
        got = 0
        while got < 64 << 20:
            got += len(caller.recv(1 << 20))

        assert served.closed == 0
