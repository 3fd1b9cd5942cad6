"""Every choice that a library would make for the bridge, made here on purpose and with its reason.

uvicorn brings the server, llhttp (httptools) the grammar, Starlette the routes. What they do by default is right for
somebody; a test goes through all parameters of `uvicorn.Config`, so that a new one is chosen too and not inherited.
"""

from __future__ import annotations

import inspect
import ssl
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from .config import BridgeSettings
from .connection import protocol_for

BACKLOG: Final = 2048
"""Connections that wait to be accepted: a burst of clients comes at once, and the system caps it (somaxconn)."""

UVICORN: Final[dict[str, tuple[object, str]]] = {
    # Where: server.py hands over a socket that listens already, so that a busy port is one clear sentence.
    "host": ("127.0.0.1", "not used; and if it ever were, loopback"),
    "port": (0, "not used"),
    "uds": (None, "not offered"),
    "fd": (None, "not offered: systemd's socket would need the same checks of exposure as --host"),
    "backlog": (BACKLOG, "as the socket was made with"),
    "loop": ("auto", "uvloop where there is one: a third less time for each request"),
    # What is spoken.
    "http2": (False, "a proxy before the bridge speaks it; h2c is never taken, and asking for it does no harm"),
    "ws": ("none", "nothing here is a WebSocket: an Upgrade is ignored, as any that is not known"),
    "ws_max_size": (1, "not used"),
    "ws_max_queue": (1, "not used"),
    "ws_ping_interval": (None, "not used"),
    "ws_ping_timeout": (None, "not used"),
    "ws_per_message_deflate": (False, "not used"),
    "ssl_keyfile": (None, "TLS ends at a proxy, docs/security.md"),
    "ssl_certfile": (None, "as above"),
    "ssl_keyfile_password": (None, "as above"),
    "ssl_version": (ssl.PROTOCOL_TLS_SERVER, "not used"),
    "ssl_cert_reqs": (ssl.CERT_NONE, "not used"),
    "ssl_ca_certs": (None, "not used"),
    "ssl_ciphers": (None, "not used"),
    "ssl_context_factory": (None, "not used"),
    # Whom to believe.
    "proxy_headers": (False, "X-Forwarded-* from anybody would be believed"),
    "forwarded_allow_ips": ("", "nobody; else uvicorn reads FORWARDED_ALLOW_IPS"),
    "root_path": ("", "no link leads back here, so no path before ours matters"),
    "headers": (None, "each answer says what it needs"),
    "server_header": (False, "who attacks need not be told the version"),
    "date_header": (True, "RFC 9110 6.6.1: an origin server with a clock sends it"),
    # How long and how many: connection.py has the clocks and the limit.
    "timeout_keep_alive": (120, "not read by our class of connections: --keep-alive-timeout is"),
    "limit_concurrency": (
        None,
        "the broker's queue is the bound of requests, connection_limit.py that of connections",
    ),
    "limit_max_requests": (None, "a bridge that leaves by itself is a failure, not a cure for leaks"),
    "limit_max_requests_jitter": (0, "not used"),
    "h11_max_incomplete_event_size": (None, "h11 does not read here; heads.py has the bound"),
    "timeout_notify": (30, "not used"),
    "callback_notify": (None, "not used"),
    "timeout_worker_healthcheck": (5, "not used"),
    # What runs.
    "interface": ("asgi3", "what make_app returns; to guess would look for a class"),
    "factory": (False, "an app, not what makes one"),
    "lifespan": ("off", "server.py starts and ends what the app needs"),
    "workers": (1, "one loop; a second bridge is a second process with a port of its own. Else WEB_CONCURRENCY counts"),
    "reload": (False, "not a place for development"),
    "reload_dirs": (None, "not used"),
    "reload_delay": (0.25, "not used"),
    "reload_includes": (None, "not used"),
    "reload_excludes": (None, "not used"),
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
    "middleware": (None, "app.py wraps the app itself: BaseHTTPMiddleware sees a disconnect late or never"),
    "lifespan": (None, "server.py starts and ends what the app needs"),
    "max_body_size": (None, "request_body.py counts while it reads, and its 413 names the setting"),
    "redirect_slashes": (False, "app.py: a redirect names the scheme and host that the bridge sees, not its caller's"),
    "default": (None, "app.py answers where there is no route, through its handler of exceptions"),
}
"""Of application and router, as app.py has them. Its `routes` and `exception_handlers` are its own."""


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
