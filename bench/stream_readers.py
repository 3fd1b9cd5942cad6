"""A client that keeps long streams running and reads them.

    python bench/stream_readers.py ENDPOINT COUNT

It says "ready" once each stream has begun. For each line on its standard input it answers with how many tokens each of
them has brought so far; it ends when its input does.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
from rounds import say

from zmqrt.client import AsyncClient

SERVICE = "mock"
MAX_TOKENS = 100_000
"""More than any run of the bench takes: a thousand seconds of steps of 10 ms."""


async def read(endpoint: str, count: int) -> None:
    """Serve the bench."""
    made = [0] * count
    begun = asyncio.Barrier(count + 1)

    async def follow(client: AsyncClient, number: int) -> None:
        handle = client.submit(
            f"stream {number}",
            model=SERVICE,
            raw=True,
            stream=True,
            ignore_eos=True,
            max_tokens=MAX_TOKENS,
            seed=number,
        )
        async for chunk in handle:
            if not made[number]:
                made[number] = len(chunk.token_ids)
                await begun.wait()
            else:
                made[number] += len(chunk.token_ids)

    async with AsyncClient(endpoint) as client:
        readers = [asyncio.create_task(follow(client, number)) for number in range(count)]
        await begun.wait()
        say("ready")
        while await asyncio.to_thread(sys.stdin.readline):
            say(msgspec.json.encode(made).decode())
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


if __name__ == "__main__":
    where, how_many = sys.argv[1:]
    asyncio.run(read(where, int(how_many)))
