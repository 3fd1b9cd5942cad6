"""What the bridge is compared with, as programs: `python bridge_servers.py starlette|gateway PORT …`.

starlette PORT STEP_MS: Starlette alone on uvicorn, which counts by itself: what HTTP costs before anything is done.
gateway PORT URL: the classic design, a FastAPI gateway that passes requests on with httpx to the server at URL.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

Server = Callable[..., None]


def starlette(port: int, step_ms: str) -> None:
    """Count."""
    step_s = float(step_ms) / 1000

    async def tokens(count: int) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number in range(count):
            yield f"event: token\ndata: {json.dumps({'text': f'{number} '})}\n\n"
            due += step_s
            await asyncio.sleep(max(0.0, due - loop.time()))
        yield 'event: done\ndata: {"text": ""}\n\n'

    async def infer(request: Request) -> Response:
        asked: dict[str, Any] = await request.json()
        if request.headers.get("accept") == "text/event-stream":
            return StreamingResponse(tokens(asked["max_tokens"]), media_type="text/event-stream")
        said = {"api_version": "v1", "text": "x" * asked["max_tokens"], "request_id": "r"}
        return Response(json.dumps(said), media_type="application/json")

    async def health(_: Request) -> Response:
        return Response()

    _serve(Starlette(routes=[Route("/infer", infer, methods=["POST"]), Route("/health", health)]), port)


def gateway(port: int, url: str) -> None:
    """Pass requests on."""
    app = FastAPI()
    client = httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=1000))

    async def infer(ask: dict[str, Any], request: Request) -> Any:  # noqa: ANN401 - two kinds of answers
        if "text/event-stream" in request.headers.get("accept", ""):
            return StreamingResponse(tokens(ask), media_type="text/event-stream")
        return (await client.post("/infer", json=ask)).json()

    async def tokens(ask: dict[str, Any]) -> AsyncIterator[bytes]:
        async with client.stream("POST", "/infer", json=ask, headers={"accept": "text/event-stream"}) as answer:
            async for piece in answer.aiter_bytes():
                yield piece

    async def health() -> str:
        return "up"

    app.post("/infer", response_model=None)(infer)
    app.get("/health")(health)
    _serve(app, port)


def _serve(app: Any, port: int) -> None:  # noqa: ANN401 - an ASGI app
    """Serve as the bridge does: uvloop and httptools where they are."""
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off", ws="none", access_log=False)


SERVERS: Final[dict[str, Server]] = {"starlette": starlette, "gateway": gateway}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]), *sys.argv[3:])
