"""uvicorn around the app: one listening socket, one loop, a drain at the end. Needs the extra `zmqrt[bridge]`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable

import click
import uvicorn

from ..client import AsyncClient
from ..protocol.addresses import addresses_of, join_host
from ..protocol.errors import ConfigurationError, ZmqrtError
from ..protocol.limits import MAX_OUTSTANDING_BRIDGE
from .app import make_app
from .config import BridgeSettings
from .defaults import BACKLOG, uvicorn_config


def serve(settings: BridgeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, and finish what runs; a second Ctrl-C stops at once."""
    flush_traces = _start_traces(settings)
    try:
        _serve(settings)
    finally:
        flush_traces()


def _start_traces(settings: BridgeSettings) -> Callable[[], None]:
    if settings.traces == "none":
        return lambda: None
    try:
        from .traced import start
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error}; --traces needs: pip install 'zmqrt[trace]'") from None
    return start(settings.traces)


def _serve(settings: BridgeSettings) -> None:
    client = AsyncClient(
        settings.broker,
        keys=settings.keys,
        insecure=settings.insecure,
        timeout_s=settings.request_timeout_s,
        name="bridge",
        max_outstanding=MAX_OUTSTANDING_BRIDGE,
    )
    config = uvicorn_config(make_app(client, settings), settings)
    if settings.log_level == "info":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # that it starts and stops, our own lines say
    with contextlib.ExitStack() as held, asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        listeners = [held.enter_context(listener) for listener in listen(settings)]
        server = _Server(config, ready_line(settings, listeners[0]))
        runner.run(_run(server, listeners, client))


def listen(settings: BridgeSettings) -> list[socket.socket]:
    """Take the port before anything else starts, so that a busy one is one clear sentence. Raises ZmqrtError.

    A name may stand for several addresses, `localhost` for one of each family: all of them listen, at one port.
    """
    host, port = settings.host.strip("[]"), settings.port
    listeners: list[socket.socket] = []
    try:
        for address in addresses_of(host):
            listeners.append(_listen(address, port))
            port = listeners[0].getsockname()[1]
    except (OSError, UnicodeError) as error:
        for listener in listeners:
            listener.close()
        taken = "is in use by another process; choose another with --port"
        reason = taken if isinstance(error, OSError) and error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
        raise ZmqrtError(f"http://{join_host(host, port)} {reason}") from None
    return listeners


def _listen(address: str, port: int) -> socket.socket:
    [(family, kind, proto, _, where), *_] = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    # With its protocol named: else asyncio's own loop leaves Nagle's algorithm on, and answers come 40 ms late.
    listener = socket.socket(family, kind, proto)
    try:
        if sys.platform != "win32":  # there it would let two processes have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # `::` is every address, of both families, whatever the system's default is
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address != "::")
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def ready_line(settings: BridgeSettings, listener: socket.socket) -> str:
    """Say where requests are taken, for a person or for the program that started this one."""
    url = f"http://{join_host(*listener.getsockname()[:2])}"
    if settings.log_format == "json":
        return json.dumps({"event": "ready", "role": "bridge", "endpoints": {"http": url}})
    return f"zmqrt-bridge ready at {url} (broker {', '.join(settings.broker)})"


class _Server(uvicorn.Server):
    """A server that says when it serves."""

    def __init__(self, config: uvicorn.Config, said: str) -> None:
        super().__init__(config)
        self._said = said

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the ready line."""
        await super().startup(sockets)
        click.echo(self._said)
        sys.stdout.flush()


async def _run(server: uvicorn.Server, listeners: list[socket.socket], client: AsyncClient) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        # uvicorn handles them, and raises the one that ended it once more afterwards: a drain is no failure.
        signal.signal(each, signal.SIG_IGN)
    try:
        await server.serve(sockets=listeners)
    finally:
        await client.close()
