"""The engine of `plain_engine.py` as two replicas of Ray Serve: `python ray_engine.py PORT`.

Run by the Python that has Ray Serve. Asked for `pid`, a replica answers with its own, so that `bench_engine_loss.py`
can kill it. With the word `whole` after the port, one replica answers whatever it is asked at once.
"""

# ruff: noqa: ANN001, ANN201, ANN204
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from ray import serve
from starlette.responses import PlainTextResponse, StreamingResponse

STEP_S = 0.02


@serve.deployment(num_replicas=2, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Engine:
    """Counts."""

    async def __call__(self, request):
        """Answer a health check, or a chat."""
        if request.method == "GET":
            return PlainTextResponse("ok")
        return StreamingResponse(self.count(await request.json()), media_type="text/event-stream")

    async def count(self, asked):
        """Yield a number every 20 ms."""
        is_pid = asked["messages"][-1]["content"] == "pid"
        for number in range(asked["max_tokens"]):
            await asyncio.sleep(STEP_S)
            delta = {"content": f"pid {os.getpid()}" if is_pid else f"{number} "}
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
        yield "data: [DONE]\n\n"


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class WholeEngine:
    """Answers at once."""

    async def __call__(self, request):
        """Answer a health check, or a request."""
        if request.method == "GET":
            return PlainTextResponse("ok")
        asked = await request.json()
        return {"api_version": "v1", "text": "x" * asked["max_tokens"], "request_id": "r"}


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run((WholeEngine if sys.argv[2:] == ["whole"] else Engine).bind(), route_prefix="/")
    while True:
        time.sleep(1)
