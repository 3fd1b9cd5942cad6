"""GET /metrics of a role that has no HTTP of its own: prometheus-client's server on loopback, if asked for.

It never touches the tables of a loop: it asks the loop for a copy, and gives up when the loop is too busy to answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

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

    def ask() -> R | None:
        answer: concurrent.futures.Future[R] = concurrent.futures.Future()

        def run() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(read())
                except Exception as error:  # noqa: BLE001 - it is the asker's to raise
                    answer.set_exception(error)

        try:
            loop.call_soon_threadsafe(run)
        except RuntimeError:  # closed meanwhile
            return None
        try:
            return answer.result(_PATIENCE_S)
        except TimeoutError:
            answer.cancel()
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


def _shut(server: WSGIServer) -> None:
    with contextlib.suppress(OSError):
        server.shutdown()
        server.server_close()


class MetricsPort:
    """Serves while in the `with` block. Port 0 picks a free one; without a port there is nothing at all."""

    def __init__(self, port: int | None, collector: Callable[[], Collector]) -> None:
        self._port = port
        self._collector = collector
        self._server: WSGIServer | None = None

    @property
    def url(self) -> str | None:
        """Where it serves."""
        return f"http://{HOST}:{self._server.server_port}/metrics" if self._server is not None else None

    def __enter__(self) -> Self:
        if self._port is not None:
            self._start(self._port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:  # in a thread: it waits up to half a second, and the loop has goodbyes to say
            threading.Thread(target=_shut, args=(self._server,), daemon=True).start()

    def _start(self, port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"{error}; --metrics-port needs: pip install 'zmqrt[metrics]'") from None
        registry = CollectorRegistry()
        registry.register(self._collector())
        try:
            self._server, _ = start_http_server(port, HOST, registry)
            app = self._server.get_app()
            assert app is not None
            self._server.set_app(only_this_machine(app))
        except OSError as error:
            text = f"http://{HOST}:{port} cannot serve metrics: {error.strerror}; choose another --metrics-port"
            raise ZmqrtError(text) from None
