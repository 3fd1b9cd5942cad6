"""A web server in this process, in the place of a bridge or a proxy."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Web:
    """Answers every POST as told, and keeps what came: path, headers, body."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b'{"api_version": "v1", "text": "Hello", "request_id": "r"}'
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                web.requests.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(web.status)
                for name, value in web.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(web.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's own
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def asked(self) -> list[tuple[str, str | None]]:
        """Path and key of each request."""
        return [(path, headers.get("Authorization")) for path, headers, _ in self.requests]


@contextlib.contextmanager
def serving() -> Generator[Web]:
    """Run a server while in the block."""
    web = Web()
    with web.server:
        thread = threading.Thread(target=web.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield web
        web.server.shutdown()
        thread.join()
