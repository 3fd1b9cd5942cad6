"""Load through the client library: `python native_load.py` reads a `CallOrder` a line, whose URL is a broker's."""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
from rounds import CallOrder, CallOutcome, Tally, say

from zmqrt.client import AsyncClient


async def _call(client: AsyncClient, order: CallOrder, number: int, tally: Tally) -> int:
    """Ask one thing after the other; return how many chunks came."""
    prompt = f"Caller {number:03d} asks: ".ljust(100, "?")
    chunks = 0
    while (began_at := time.perf_counter()) < tally.end_at:
        handle = client.submit(prompt, stream=order.is_stream, raw=True, max_tokens=order.max_tokens)
        if order.is_stream:
            async for _ in handle:
                chunks += 1
        result = await handle.result()
        if result.usage.completion_tokens == order.max_tokens:
            tally.latencies_s.append(time.perf_counter() - began_at)
        else:
            tally.refused += 1
    return chunks


async def run(client: AsyncClient, order: CallOrder) -> CallOutcome:
    """Run one round, and wait for the last answer of it."""
    tally, used_s = Tally(order), time.process_time()
    chunks = await asyncio.gather(*(_call(client, order, number, tally) for number in range(order.depth)))
    return tally.call_outcome(stalled=0, events=sum(chunks), used_s=used_s)


async def main() -> None:
    """Serve the bench: a client for each broker, kept between rounds."""
    clients: dict[str, AsyncClient] = {}
    say("ready")
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = msgspec.json.decode(line, type=CallOrder)
        if order.url not in clients:
            clients[order.url] = AsyncClient(order.url)
        say(msgspec.json.encode(await run(clients[order.url], order)).decode())
    for client in clients.values():
        await client.close()


if __name__ == "__main__":
    asyncio.run(main())
