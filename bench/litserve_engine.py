"""The engine of `plain_engine.py` as two workers of LitServe: `python litserve_engine.py PORT`.

Run by the Python that has LitServe. Asked for `pid`, a worker answers with its own, so that `bench_engine_loss.py` can
kill it.
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


if __name__ == "__main__":
    server = litserve.LitServer(
        Engine(spec=litserve.OpenAISpec(), enable_async=True), accelerator="cpu", workers_per_device=2
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
