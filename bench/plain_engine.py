"""An OpenAI-compatible engine without a model: `python plain_engine.py PORT` streams `0 1 2 …`, a number every 20 ms.

It stands behind the gateways that `bench_engine_loss.py` compares us with. What it answers is known in advance, so a
stream that lacks its end is told from a whole one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

STEP_S = 0.02
MODEL = "counter"


def _chunk(delta: dict[str, str], finish_reason: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": MODEL, "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n"


async def _count(tokens: int) -> AsyncIterator[str]:
    yield _chunk({"role": "assistant", "content": ""}, None)
    for number in range(tokens):
        await asyncio.sleep(STEP_S)
        yield _chunk({"content": f"{number} "}, None)
    yield _chunk({}, "stop")
    yield "data: [DONE]\n\n"


async def _chat(request: Request) -> Response:
    asked: dict[str, Any] = await request.json()
    return StreamingResponse(_count(asked.get("max_tokens", 16)), media_type="text/event-stream")


async def _models(_: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]})


async def _fine(_: Request) -> Response:
    return JSONResponse({"model_path": MODEL, "served_model_name": MODEL, "is_generation": True})


app = Starlette(
    routes=[
        Route("/v1/chat/completions", _chat, methods=["POST"]),
        Route("/v1/models", _models),
        *(Route(path, _fine) for path in ("/health", "/health_generate", "/get_model_info", "/get_server_info")),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
