"""A server of the bridge around any ASGI app, in a thread, and what talks to it byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from support.stack import eventually
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.server import uvicorn_config
from zmqrt.bridge_http.sse import Events, EventStream, KeepAlives

Address = tuple[str, int]


@contextlib.contextmanager
def serving(app: ASGIApp, **settings: Any) -> Generator[Address]:
    """Serve in a thread, on a free port."""
    settings.setdefault("drain_timeout_s", 2.0)
    config = uvicorn_config(app, BridgeSettings(**settings))
    server = uvicorn.Server(config)

    def run() -> None:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listener]))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        thread = threading.Thread(target=run)
        thread.start()
        eventually(lambda: server.started, what="the server")
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


def event_stream(events: Events, close: Callable[[], None]) -> EventStream:
    """Stream events of no API: it idles by a comment, and whatever goes wrong is raised."""

    def failure(error: Exception) -> bytes:
        raise error

    return EventStream(events, close=close, idle=lambda: b": idle\n", failure=failure, keep_alives=KeepAlives())


def connect(address: Address) -> socket.socket:
    """Connect, with patience that ends."""
    caller = socket.create_connection(address)
    caller.settimeout(20)
    return caller


def read_all(caller: socket.socket) -> bytes:
    """Read until the server closes; one that was cut off has read what it has."""
    parts: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while part := caller.recv(65536):
            parts.append(part)
    return b"".join(parts)


def read_until(caller: socket.socket, end: bytes) -> bytes:
    """Read until some bytes have come."""
    got = b""
    while end not in got:
        part = caller.recv(65536)
        assert part, got
        got += part
    return got


def say(address: Address, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send, perhaps end the sending half, and return everything that comes until the server closes."""
    with connect(address) as caller:
        with contextlib.suppress(ConnectionError):  # what refuses may close before all is sent
            for piece in pieces:
                caller.sendall(piece)
            if half_close:
                caller.shutdown(socket.SHUT_WR)
        return read_all(caller)


def statuses(said: bytes) -> list[int]:
    """Return the statuses of all answers in a row."""
    return [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit() and part[3:4] == b" "]
