"""Call an ASGI app in this process, as a server would: also one whose caller leaves before the answer."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from starlette.types import ASGIApp, Message


@dataclass
class Exchange:
    """One request under way, and what has been answered so far."""

    app: ASGIApp
    scope: dict[str, Any]
    pieces: list[bytes]
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    is_complete: bool = False

    def __post_init__(self) -> None:
        self._left = asyncio.Event()
        self._grown = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Self:
        """Begin; `finish` or `until` wait for the answer."""
        self._task = asyncio.create_task(self._run())
        return self

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def finish(self) -> Self:
        """Wait until the app has returned."""
        assert self._task is not None
        await asyncio.wait_for(self._task, 10)
        return self

    async def until(self, words: bytes) -> None:
        """Wait until the body holds some words."""
        while words not in self.body:
            self._grown.clear()
            await asyncio.wait_for(self._grown.wait(), 10)

    async def until_lines(self, count: int) -> None:
        """Wait until the body has so many lines."""
        while self.body.count(b"\n") < count:
            self._grown.clear()
            await asyncio.wait_for(self._grown.wait(), 10)

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    async def _run(self) -> None:
        await self.app(self.scope, self._receive, self._send)

    async def _receive(self) -> Message:
        if self.pieces:
            body = self.pieces.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self.pieces)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            return
        self.body += message.get("body", b"")
        self.is_complete = not message.get("more_body", False)
        self._grown.set()


def exchange(
    app: ASGIApp,
    method: str,
    path: str,
    *,
    body: bytes | list[bytes] = b"",
    headers: Mapping[str, str] | None = None,
) -> Exchange:
    """Prepare a request; a body given as a list comes in those pieces."""
    sent = {"host": "127.0.0.1:8000", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    return Exchange(app, scope, list(body) if isinstance(body, list) else [body])


async def call(
    app: ASGIApp, method: str, path: str, *, body: bytes | list[bytes] = b"", headers: Mapping[str, str] | None = None
) -> Exchange:
    """Send a request and wait for the whole answer."""
    return await exchange(app, method, path, body=body, headers=headers).start().finish()


def infer(app: ASGIApp, body: object, **headers: str) -> Exchange:
    """POST JSON to /infer from synchronous code; `x_request_id` stands for the header x-request-id."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(call(app, "POST", "/infer", body=raw, headers=named))
