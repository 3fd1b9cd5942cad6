"""A client and a worker of NATS, in asyncio: `python nats_peers.py client|worker URL`.

Run by the Python that has nats-py. The worker sends every message back; the server of NATS stands between them.
"""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import sys

import nats
from rounds import Order, Outcome, Tally, say, serve

SUBJECT = "bench"
_PATIENCE_S = 5.0


async def work(url: str) -> None:
    """Send every message back, for ever."""
    client = await nats.connect(url)

    async def answer(message: nats.aio.msg.Msg) -> None:
        await message.respond(message.data)

    await client.subscribe(SUBJECT, cb=answer)
    await client.flush()
    say("ready")
    await asyncio.Event().wait()


async def run(client: nats.aio.client.Client, order: Order) -> Outcome:
    """Run one round, and wait for the last answer of it."""
    tally, body = Tally(order), b"x" * order.body_bytes

    def ask():  # noqa: ANN202 - a coroutine
        return client.request(SUBJECT, body, timeout=_PATIENCE_S)

    await asyncio.gather(*(tally.repeat(ask) for _ in range(order.depth)))
    return tally.outcome()


if __name__ == "__main__":
    role, where = sys.argv[1:]
    with asyncio.Runner() as runner:
        if role == "worker":
            runner.run(work(where))
        else:
            to_server = runner.run(nats.connect(where))
            serve(lambda order: runner.run(run(to_server, order)), Order)
