"""How much later a calm tenant's answers come while another one asks for a hundred times as much, through two bridges.

A broker, a node that runs 32 requests at a time and takes 50 ms a token, and two bridges. The calm tenant asks for 40
tokens, eight at a time; the hot one for 10 to 30, with a hundred times as many requests waiting or under way, spread
over both bridges, and asks again at once when it is refused. Rounds without and with the hot one take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import click
import httpx
import msgspec
from processes import BROKER, Ready, start
from rich.console import Console
from rich.table import Table

CALM: Final = 8
HOT: Final = 100 * CALM
_SLOTS: Final = "32"
_QUIET: Final = ("--log-format", "json", "--log-level", "error")
_REFUSED_S: Final = 0.5
_QUEUES_FILL_S: Final = 5.0
"""Until what is asked so often stands in line as it then goes on to: the first ones find free places."""


def _serve(stack: contextlib.ExitStack, keys: Path) -> list[str]:
    """Start the fleet; return the addresses of both bridges."""
    _, said = start(stack, *BROKER, "--max-queued-requests", "1024")
    broker = msgspec.json.decode(said.readline(), type=Ready).endpoints
    mock = ("--engine", "mock", "--devices", "mock:0", "--engine-opt", "step_ms=50,eos=never")
    room = ("--slots", _SLOTS, "--node-max-capacity", _SLOTS)
    _, said = start(stack, "-m", "zmqrt.worker", *_QUIET, "--broker", broker["workers"], *mock, *room)
    said.readline()
    words = ("--broker", broker["clients"], "--port", "0", "--api-keys-file", str(keys))
    bridges: list[str] = []
    for _ in range(2):
        _, said = start(stack, "-m", "zmqrt.bridge_http", *_QUIET, *words)
        bridges.append(msgspec.json.decode(said.readline(), type=Ready).endpoints["http"])
    return bridges


async def _ask(client: httpx.AsyncClient, url: str, key: str, tokens: int) -> float | None:
    """Ask once; return how long it took, None if it was refused."""
    began = time.perf_counter()
    body = {"prompt": "hello", "max_tokens": tokens}
    reply = await client.post(f"{url}/infer", json=body, headers={"x-api-key": key})
    return time.perf_counter() - began if reply.status_code == 200 else None


async def _flood(client: httpx.AsyncClient, url: str, chance: random.Random) -> None:
    while True:
        if await _ask(client, url, "hot", chance.randrange(10, 31)) is None:
            await asyncio.sleep(_REFUSED_S * (0.5 + chance.random()))


async def _round(bridges: list[str], requests: int, *, hot: int) -> list[float]:
    """Return the times of the calm tenant's requests."""
    chance = random.Random(7)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=300) as client:
        flood = [asyncio.create_task(_flood(client, bridges[at % 2], chance)) for at in range(hot)]
        await asyncio.sleep(_QUEUES_FILL_S if hot else 0.0)

        async def calm(at: int) -> list[float]:
            times: list[float] = []
            while len(times) < requests // CALM:
                took = await _ask(client, bridges[at % 2], "calm", 40)
                times += [took] if took is not None else []
            return times

        times = await asyncio.gather(*map(calm, range(CALM)))
        for one in flood:
            one.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    return [each for own in times for each in own]


def p95(times: list[float]) -> float:
    """Return the 95th percentile."""
    return sorted(times)[math.ceil(0.95 * len(times)) - 1]


@click.command(help=__doc__)
@click.option("--requests", default=64, show_default=True, help="Of the calm tenant, in each round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--hot", default=HOT, show_default=True, help="Requests of the hot tenant at once.")
def main(requests: int, rounds: int, hot: int) -> None:
    """Run the rounds and print the table."""
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        keys = Path(folder) / "keys"
        keys.touch(0o600)
        keys.write_text("hot:hot\ncalm:calm\n")
        bridges = _serve(stack, keys)
        for _ in range(rounds):
            alone.append(asyncio.run(_round(bridges, requests, hot=0)))
            beside.append(asyncio.run(_round(bridges, requests, hot=hot)))
    table = Table(title=f"{' '.join(sys.argv)}; {requests} requests a round, {os.cpu_count()} cores")
    for name in ("", "median ms", "p95 ms", "p95 of each round"):
        table.add_column(name)
    for name, found in (("alone", alone), (f"beside {hot} of a hot tenant", beside)):
        times = [each for one in found for each in one]
        each_p95 = ", ".join(f"{p95(one) * 1000:.0f}" for one in found)
        table.add_row(name, f"{statistics.median(times) * 1000:.0f}", f"{p95(times) * 1000:.0f}", each_p95)
    Console().print(table)
    shift = p95([each for one in beside for each in one]) / p95([each for one in alone for each in one]) - 1
    Console().print(f"p95 moves by {shift:+.1%}")


if __name__ == "__main__":
    main()
