"""uvicorn around the app: listening sockets, one loop, a drain at the end. Needs the extra `zmqrt[bridge]`.

uvicorn brings the server, llhttp (httptools) the grammar, Starlette the routes. What they do by default is right for
somebody, so every choice that they would make is made here on purpose and with its reason; a test goes through all
parameters of `uvicorn.Config`, so that a new one is chosen too and not inherited.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import inspect
import json
import logging
import signal
import socket
import ssl
import sys
from typing import Any, Final

import click
import uvicorn
from starlette.types import ASGIApp

from ..client import AsyncClient
from ..client.loop_client import LoopClient
from ..protocol.addresses import addresses_of, join_host
from ..protocol.errors import ZmqrtError
from ..protocol.limits import MAX_OUTSTANDING_BRIDGE
from .app import make_app
from .audit import AuditLog
from .config import BridgeSettings
from .connection import protocol_for
from .metering import UsageMeter
from .middleware import start_traces

BACKLOG: Final = 2048
"""Connections that wait to be accepted: a burst of clients comes at once, and the system caps it (somaxconn)."""

_NOT_USED: Final[dict[str, object]] = {
    **dict.fromkeys(("ws_ping_interval", "ws_ping_timeout", "ssl_ca_certs", "ssl_ciphers", "ssl_context_factory")),
    **dict.fromkeys(("callback_notify", "reload_dirs", "reload_includes", "reload_excludes")),
    "port": 0,
    "ws_max_size": 1,
    "ws_max_queue": 1,
    "ws_per_message_deflate": False,
    "ssl_version": ssl.PROTOCOL_TLS_SERVER,
    "ssl_cert_reqs": ssl.CERT_NONE,
    "limit_max_requests_jitter": 0,
    "timeout_notify": 30,
    "timeout_worker_healthcheck": 5,
    "reload_delay": 0.25,
}
UVICORN: Final[dict[str, tuple[object, str]]] = {
    **{name: (value, "not used") for name, value in _NOT_USED.items()},
    # Where: server.py hands over a socket that listens already, so that a busy port is one clear sentence.
    "host": ("127.0.0.1", "not used; and if it ever were, loopback"),
    "uds": (None, "not offered"),
    "fd": (None, "not offered: systemd's socket would need the same checks of exposure as --host"),
    "backlog": (BACKLOG, "as the socket was made with"),
    "loop": ("auto", "uvloop where there is one: a third less time for each request"),
    # What is spoken.
    "http2": (False, "a proxy before the bridge speaks it; h2c is never taken, and asking for it does no harm"),
    "ws": ("none", "nothing here is a WebSocket: an Upgrade is ignored, as any that is not known"),
    "ssl_keyfile": (None, "TLS is ours, tls.py: that of the loop counts nobody before the handshake is done"),
    "ssl_certfile": (None, "as above"),
    "ssl_keyfile_password": (None, "as above"),
    # Whom to believe.
    "proxy_headers": (False, "forwarded.py believes those that --trusted-proxy names, and no others"),
    "forwarded_allow_ips": ("", "nobody; else uvicorn reads FORWARDED_ALLOW_IPS"),
    "root_path": ("", "no link leads back here, so no path before ours matters"),
    "headers": (None, "each answer says what it needs"),
    "server_header": (False, "who attacks need not be told the version"),
    "date_header": (True, "RFC 9110 6.6.1: an origin server with a clock sends it"),
    # How long and how many: connection.py has the clocks and the limit.
    "timeout_keep_alive": (120, "not read by our class of connections: --keep-alive-timeout is"),
    "limit_concurrency": (
        None,
        "the broker's queue is the bound of requests, connection_limits.py that of connections",
    ),
    "limit_max_requests": (None, "a bridge that leaves by itself is a failure, not a cure for leaks"),
    "h11_max_incomplete_event_size": (None, "h11 does not read here; heads.py has the bound"),
    # What runs.
    "interface": ("asgi3", "what make_app returns; to guess would look for a class"),
    "factory": (False, "an app, not what makes one"),
    "lifespan": ("off", "server.py starts and ends what the app needs"),
    "workers": (1, "one loop; a second bridge is a second process with a port of its own. Else WEB_CONCURRENCY counts"),
    "reload": (False, "not a place for development"),
    "env_file": (None, "settings come from one place, and that is not uvicorn"),
    "reset_contextvars": (False, "each exchange has a task of its own, and the bridge keeps nothing in such variables"),
    # What is written.
    "log_config": (None, "our own format, set already"),
    "log_level": (None, "as above"),
    "use_colors": (None, "as above"),
}
"""Value and reason. `app`, `http`, `access_log` and `timeout_graceful_shutdown` follow from the settings, below."""


STARLETTE: Final[dict[str, tuple[object, str]]] = {
    "debug": (False, "a traceback is nobody's answer"),
    "middleware": (None, "app.py answers what endpoints raise; BaseHTTPMiddleware sees a disconnect late or never"),
    "lifespan": (None, "server.py starts and ends what the app needs"),
    "max_body_size": (None, "request_body.py counts while it reads, and its 413 names the setting"),
    "redirect_slashes": (False, "app.py: a redirect names the scheme and host that the bridge sees, not its caller's"),
    "default": (None, "app.py answers where there is no route, through its handler of exceptions"),
}
"""Of application and router, as app.py has them. Its `routes` and `exception_handlers` are its own."""


def serve(settings: BridgeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, and finish what runs; a second Ctrl-C stops at once."""
    flush_traces = start_traces(settings.traces)
    try:
        _serve(settings)
    finally:
        flush_traces()


def _serve(settings: BridgeSettings) -> None:
    make_client = AsyncClient if sys.platform == "win32" else LoopClient  # whose loop there has no `add_reader`
    client = make_client(
        settings.broker,
        keys=settings.keys,
        insecure=settings.insecure,
        timeout_s=settings.request_timeout_s,
        name="bridge",
        max_outstanding=MAX_OUTSTANDING_BRIDGE,
    )
    meter = UsageMeter(settings)
    audit = AuditLog(settings.audit_log) if settings.audit_log is not None else None
    config = uvicorn_config(make_app(client, settings, meter, audit), settings)
    if settings.log_level == "info":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # that it starts and stops, our own lines say
    with contextlib.ExitStack() as held, asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        listeners = [held.enter_context(listener) for listener in listen(settings)]
        server = _Server(config, ready_line(settings, listeners[0]))
        held.callback(meter.close)
        if audit is not None:
            held.callback(audit.close)
            if sys.platform != "win32":
                signal.signal(signal.SIGHUP, lambda _number, _frame: audit.reopen())
        runner.run(_run(server, listeners, client))


def uvicorn_config(app: ASGIApp, settings: BridgeSettings) -> uvicorn.Config:
    """Return the server's whole configuration. What this version of uvicorn does not know yet is left out."""
    known = inspect.signature(uvicorn.Config).parameters
    chosen: dict[str, Any] = {name: value for name, (value, _) in UVICORN.items() if name in known}
    return uvicorn.Config(
        app,
        http=protocol_for(settings),
        access_log=settings.access_log,
        # Open streams would be waited for forever.
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
        **chosen,
    )


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
        raise ZmqrtError(f"{settings.scheme}://{join_host(host, port)} {reason}") from None
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
    """Write where requests are taken, for a person or for the program that started this one."""
    url = f"{settings.scheme}://{join_host(*listener.getsockname()[:2])}"
    if settings.log_format == "json":
        return json.dumps({"event": "ready", "role": "bridge", "endpoints": {"http": url}})
    return f"zmqrt-bridge ready at {url} (broker {', '.join(settings.broker)})"


class _Server(uvicorn.Server):
    """Prints a line when it serves."""

    def __init__(self, config: uvicorn.Config, ready_line: str) -> None:
        super().__init__(config)
        self._ready_line = ready_line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the ready line."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what was made at the start stays: looking through it again and again took a fifth of each request
        click.echo(self._ready_line)
        sys.stdout.flush()


async def _run(server: uvicorn.Server, listeners: list[socket.socket], client: AsyncClient) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn handles them, and raises the one that ended it once more afterwards: a drain is no failure.
        signal.signal(number, signal.SIG_IGN)
    try:
        await server.serve(sockets=listeners)
    finally:
        await client.close()
