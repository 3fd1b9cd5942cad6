"""Stands before a bridge and writes down what programs ask it, for `tests/e2e/recorded`.

    PYTHONPATH=tests .venv/bin/python -m support.recorder http://127.0.0.1:8000 9000 tests/e2e/recorded/NAME.json

Point the program at port 9000; Ctrl-C ends it. Long texts are cut, for what counts is which fields there are and of
what kind. Headers that may hold a secret, or the name of a machine, are left out.
"""

from __future__ import annotations

import http.client
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

_LONGEST: Final = 60
_KEPT: Final = ("user-agent", "anthropic-", "openai-", "originator")
_PRIVATE: Final = ("user_id", "metadata", "client_metadata", "user", "prompt_cache_key", "session_id")


def trimmed(value: object) -> Any:
    """Cut long texts."""
    match value:
        case str():
            return value[:_LONGEST]
        case dict():
            return {key: trimmed(one) for key, one in cast("dict[str, Any]", value).items()}
        case list():
            return [trimmed(one) for one in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case _:
            return value


def nameless(value: object) -> Any:
    """Replace each text in what names somebody."""
    if isinstance(value, dict):
        return {key: nameless(one) for key, one in cast("dict[str, Any]", value).items()}
    return "someone" if isinstance(value, str) else value


def said(body: bytes) -> Any:
    """Return what is kept of a body."""
    fields: dict[str, Any] = json.loads(body)
    return {name: nameless(one) if name in _PRIVATE else trimmed(one) for name, one in fields.items()}


class Recorder(ThreadingHTTPServer):
    """Passes requests on to a bridge, and keeps those that ask for work or models."""

    def __init__(self, bridge: str, port: int, file: Path) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.bridge = urlsplit(bridge).netloc
        self._file = file
        self._kept: list[dict[str, Any]] = []

    def keep(self, method: str, path: str, headers: dict[str, str], body: bytes, status: int) -> None:
        """Write down one request, and what it was answered."""
        kept = {name: value for name, value in headers.items() if name.startswith(_KEPT)}
        self._kept.append(
            {"method": method, "path": path, "headers": kept, "body": said(body) if body else None, "status": status}
        )
        self._file.write_text(json.dumps(self._kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _Handler(BaseHTTPRequestHandler):
    """One connection of a program."""

    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        server = cast("Recorder", self.server)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        sent = {name: value for name, value in headers.items() if name not in ("host", "connection", "accept-encoding")}
        connection = http.client.HTTPConnection(server.bridge, timeout=300)
        connection.request(self.command, self.path, body, sent)
        answer = connection.getresponse()
        server.keep(self.command, self.path, headers, body, answer.status)
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers.get("content-type", "text/plain"))
        self.send_header("connection", "close")
        self.close_connection = True
        self.end_headers()
        while part := answer.read1(65536):
            self.wfile.write(part)
            self.wfile.flush()
        connection.close()

    do_GET = do_POST = do_HEAD = do_DELETE = do_OPTIONS = _pass_on  # noqa: N815 - what the library calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say what comes in."""
        print(format % args, file=sys.stderr)


if __name__ == "__main__":
    with Recorder(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])) as recorder:
        recorder.serve_forever()
