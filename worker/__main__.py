"""`zmqrt-worker`: one node, on its own or with a broker of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine

from ..protocol.logs import configure_logging
from ..protocol.settings import command
from .config import WorkerSettings
from .node import serve
from .standalone import serve_alone


@command(
    WorkerSettings, name="zmqrt-worker", help="Run models on the devices of this machine, for one or more brokers."
)
def main(settings: WorkerSettings) -> None:
    """Run a node; the exit code says how it ended."""
    configure_logging(settings.log_level, settings.log_format, role="worker", worker_id=settings.name)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # prompts are encoded one by one, on our own thread
    sys.exit(_run(serve_alone(settings) if settings.standalone else serve(settings)))


def _run(node: Coroutine[None, None, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(node)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(node)


if __name__ == "__main__":
    main()
