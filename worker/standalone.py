"""`--standalone`: a worker that brings its own broker, so that one command serves clients.

The broker is a process like any other (`python -m zmqrt.broker`), which ends with us: the roles meet on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
from collections.abc import AsyncGenerator
from typing import Any, Final

from ..protocol.children import PARENT_WATCH, python
from ..protocol.errors import ZmqrtError
from .config import WorkerSettings
from .node import serve

_START_S: Final = 20.0
_STOP_S: Final = 5.0
"""The worker has drained before the broker is told to stop: there is nothing left to finish."""


class BrokerFailedError(ZmqrtError):
    """The broker did not start; why stands in its own log."""


async def serve_alone(settings: WorkerSettings) -> int:
    """Run a node with a broker of its own; without the broker there is no point in going on."""
    async with _own_broker(settings) as (child, endpoints):
        settings = dataclasses.replace(settings, broker=(endpoints["workers"],))
        node = asyncio.create_task(serve(settings, client_endpoint=endpoints["clients"]))
        end = asyncio.create_task(child.wait())
        try:
            await asyncio.wait({node, end}, return_when=asyncio.FIRST_COMPLETED)
            if not node.done():
                raise BrokerFailedError(f"the broker of --standalone has ended (exit code {end.result()})")
            return node.result()
        finally:
            for task in (node, end):
                task.cancel()
            await asyncio.gather(node, end, return_exceptions=True)


@contextlib.asynccontextmanager
async def _own_broker(
    settings: WorkerSettings,
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, dict[str, str]], None]:
    """Run a broker; yield it with its endpoints by name (`clients`, `workers`)."""
    child = await asyncio.create_subprocess_exec(
        *python(PARENT_WATCH, "0", "zmqrt.broker", *_arguments(settings)),
        stdin=asyncio.subprocess.PIPE,  # its end of file tells the broker that we are gone, killed or not
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the worker, which drains first and stops the broker then
    )
    try:
        yield child, await _endpoints(child)
    finally:
        await _stop(child)


def _arguments(settings: WorkerSettings) -> list[str]:
    port = settings.port
    endpoints = [f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 1 if port else 0}"]
    arguments = ["--clients", endpoints[0], "--workers", endpoints[1], "--log-level", settings.log_level]
    if settings.keys is not None:
        arguments += ["--keys", str(settings.keys)]
    return [*arguments, "--log-format", "json"]


async def _endpoints(child: asyncio.subprocess.Process) -> dict[str, str]:
    """Wait for the broker's ready line."""
    assert child.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            async for line in child.stdout:
                record: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
                if record.get("event") == "ready":
                    return {str(name): str(value) for name, value in record["endpoints"].items()}
            code = await child.wait()
    except TimeoutError:
        raise BrokerFailedError(f"the broker of --standalone was not ready within {_START_S:.0f} s") from None
    raise BrokerFailedError(f"the broker of --standalone did not start (exit code {code}); its words are above")


async def _stop(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
