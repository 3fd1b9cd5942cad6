"""Serves GET /metrics for a role that has no HTTP of its own: prometheus-client's server on loopback, if asked for.

It never touches the tables of a loop: it asks the loop for a copy, and gives up when the loop is too busy to answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Final, TypeVar

from .errors import ConfigurationError, ZmqrtError
from .origins import is_this_machine, read_host

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client.registry import Collector

_PATIENCE_S: Final = 2.0
HOST: Final = "127.0.0.1"
R = TypeVar("R")


def ask_loop(loop: asyncio.AbstractEventLoop, read: Callable[[], R]) -> Callable[[], R | None]:
    """Return a function for other threads: it has the loop call `read`; None when the loop does not get to it."""

    async def answer() -> R:
        return read()

    def ask() -> R | None:
        question = answer()
        try:
            future = asyncio.run_coroutine_threadsafe(question, loop)
        except RuntimeError:  # closed meanwhile
            question.close()
            return None
        try:
            return future.result(_PATIENCE_S)
        except (TimeoutError, CancelledError):  # busy, or the loop ends just now
            future.cancel()
            return None

    return ask


def only_this_machine(app: WSGIApplication) -> WSGIApplication:
    """Answer only callers that meant this machine: a page may have made its own name point here (DNS rebinding)."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = str(environ.get("HTTP_HOST", ""))
        host = read_host(given)
        if not given or (host is not None and is_this_machine(host.name)):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        text = f"metrics are for this machine alone: ask http://{HOST}:PORT, and not by the name {given[:100]!r}"
        return [text.encode()]

    return answer


@contextlib.contextmanager
def serve_metrics(port: int | None, collector: Callable[[], Collector]) -> Generator[str | None, None, None]:
    """Serve while in the `with` block; give the URL. Port 0 picks a free one, None serves nothing."""
    if port is None:
        yield None
        return
    server = _start(port, collector)
    try:
        yield f"http://{HOST}:{server.server_port}/metrics"
    finally:  # in a thread: it waits up to half a second, and the loop has goodbyes to say
        threading.Thread(target=_shut, args=(server,), daemon=True).start()


def _start(port: int, collector: Callable[[], Collector]) -> WSGIServer:
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error}; --metrics-port needs: pip install 'zmqrt[metrics]'") from None
    registry = CollectorRegistry()
    registry.register(collector())
    try:
        server, _ = start_http_server(port, HOST, registry)
    except OSError as error:
        text = f"http://{HOST}:{port} cannot serve metrics: {error.strerror}; choose another --metrics-port"
        raise ZmqrtError(text) from None
    app = server.get_app()
    assert app is not None
    server.set_app(only_this_machine(app))
    return server


def _shut(server: WSGIServer) -> None:
    with contextlib.suppress(OSError):
        server.shutdown()
        server.server_close()
