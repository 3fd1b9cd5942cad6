"""`zmqrt-broker`: one broker between clients and workers."""

from __future__ import annotations

import asyncio
import json
import logging

import click

from ..protocol.descriptors import raise_limit
from ..protocol.logs import configure_logging
from ..protocol.settings import command
from .config import BrokerSettings
from .join_lines import open_to_others, show_lines
from .server import Server

log = logging.getLogger(__name__)


@command(
    BrokerSettings,
    name="zmqrt-broker",
    help="Stand between clients and workers: queue, dispatch to the least loaded node, survive the loss of any.",
)
def main(settings: BrokerSettings) -> None:
    """Run a broker until it is told to leave."""
    configure_logging(settings.log_level, settings.log_format, role="broker")
    raise_limit()
    if settings.print_join:
        settings = open_to_others(settings)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


async def _serve(settings: BrokerSettings) -> None:
    server = Server(settings)

    def ready() -> None:
        click.echo(ready_line(settings, server.endpoints))
        if settings.print_join:
            show_lines(settings, server.endpoints)

    await server.run(ready)
    log.info("left")


def ready_line(settings: BrokerSettings, endpoints: dict[str, str]) -> str:
    """Say where peers may connect, for a person or for the program that started this one."""
    if settings.log_format == "json":
        return json.dumps({"event": "ready", "role": "broker", "endpoints": endpoints})
    where = ", ".join(f"{name} at {endpoint}" for name, endpoint in endpoints.items())
    return f"zmqrt-broker ready: {where}"


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.SelectorEventLoop
    return uvloop.Loop


if __name__ == "__main__":
    main()
