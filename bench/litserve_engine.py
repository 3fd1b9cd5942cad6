"""The engine of `plain_engine.py` as two workers of LitServe: `python litserve_engine.py PORT`.

Run by the Python that has LitServe. Asked for `pid`, a worker answers with its own, so that `bench_engine_loss.py` can
kill it. With the word `whole` after the port, one worker answers `/infer` at once, as its documentation shows it.
"""

# ruff: noqa: ANN001, ANN201
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import os
import sys

import litserve

STEP_S = 0.02


class Engine(litserve.LitAPI):
    """Counts."""

    def setup(self, device) -> None:
        """Load nothing."""

    async def decode_request(self, request, context):
        """Keep how many tokens are asked for."""
        context["max_tokens"] = request.max_tokens
        return [{"role": message.role, "content": message.content} for message in request.messages]

    async def predict(self, messages, context):
        """Yield a number every 20 ms."""
        if messages[-1]["content"] == "pid":
            yield {"role": "assistant", "content": f"pid {os.getpid()}"}
            return
        for number in range(context["max_tokens"]):
            await asyncio.sleep(STEP_S)
            yield {"role": "assistant", "content": f"{number} "}


class WholeEngine(litserve.LitAPI):
    """Takes a request at a time."""

    def setup(self, device) -> None:
        """Load nothing."""

    def predict(self, asked):
        """Answer."""
        return {"api_version": "v1", "text": "x" * asked["max_tokens"], "request_id": "r"}


if __name__ == "__main__":
    if sys.argv[2:] == ["whole"]:
        server = litserve.LitServer(WholeEngine(api_path="/infer"), accelerator="cpu")
    else:
        server = litserve.LitServer(
            Engine(spec=litserve.OpenAISpec(), enable_async=True), accelerator="cpu", workers_per_device=2
        )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
