"""What the bridge is compared with, as programs: `python bridge_servers.py echo | node | gateway NODE_URL`.

echo: Starlette alone, on the server settings of the bridge: what HTTP costs before anything is done.
node, gateway: the classic design. A FastAPI node that answers by itself, and a FastAPI gateway that passes each request
on to it with httpx, whole or as a stream.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

TOKEN_S = 0.01
"""How often a stream of the node has a token, as the mock worker's."""


class Ask(BaseModel):
    """The body of /infer."""

    prompt: str
    max_tokens: int = 1


class Said(BaseModel):
    """The answer of /infer."""

    api_version: str = "v1"
    text: str
    request_id: str


def echo() -> Any:  # noqa: ANN401 - an ASGI app
    """Answer with what was sent."""

    async def answer(request: Request) -> Response:
        body = await request.json()
        said = {"api_version": "v1", "text": body["prompt"], "request_id": "r"}
        return Response(json.dumps(said), media_type="application/json")

    return Starlette(routes=[Route("/infer", answer, methods=["POST"])])


def node() -> Any:  # noqa: ANN401 - an ASGI app
    """Answer as a model would that needs no time; a stream has a token every 10 ms."""
    app = FastAPI()

    async def infer(ask: Ask) -> Said:
        return Said(text="x" * ask.max_tokens, request_id="r")

    async def stream(ask: Ask) -> StreamingResponse:
        async def tokens() -> AsyncIterator[str]:
            due = time.monotonic()
            for _ in range(ask.max_tokens):
                yield 'event: token\ndata: {"text": "x"}\n\n'
                due += TOKEN_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        return StreamingResponse(tokens(), media_type="text/event-stream")

    app.post("/infer")(infer)
    app.post("/stream")(stream)
    return app


def gateway(url: str) -> Any:  # noqa: ANN401 - an ASGI app
    """Pass requests on to a node."""
    app = FastAPI()
    client = httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=1000))

    async def infer(ask: Ask, request: Request) -> Any:  # noqa: ANN401 - two kinds of answers
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(tokens(ask), media_type="text/event-stream")
        answer = await client.post("/infer", json=ask.model_dump())
        return Said(**answer.json())

    async def tokens(ask: Ask) -> AsyncIterator[bytes]:
        async with client.stream("POST", "/stream", json=ask.model_dump()) as answer:
            async for piece in answer.aiter_bytes():
                yield piece

    app.post("/infer", response_model=None)(infer)
    return app


def main() -> None:
    """Serve on a free port, and say which."""
    apps: dict[str, Callable[[], Any]] = {"echo": echo, "node": node, "gateway": lambda: gateway(sys.argv[2])}
    config = uvicorn.Config(apps[sys.argv[1]](), log_level="warning", lifespan="off", ws="none", access_log=False)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        listener.setblocking(False)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        factory: Any = config.get_loop_factory()  # uvloop, as the bridge
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
