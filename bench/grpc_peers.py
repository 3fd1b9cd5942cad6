"""gRPC in asyncio, with nothing between client and server: `python grpc_peers.py server|client ADDRESS`.

Run by the Python that has grpcio. The server says where it is and sends every message back; nothing is serialized.
"""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import asyncio
import json
import sys

import grpc
from rounds import Order, Outcome, Tally, say, serve

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def _echo(body: bytes, _: grpc.aio.ServicerContext) -> bytes:
    return body


async def answer() -> None:
    """Be the server, for ever."""
    server = grpc.aio.server(options=OPTIONS)
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Bench", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say(json.dumps({"event": "ready", "endpoints": {"clients": f"127.0.0.1:{port}"}}))
    await server.wait_for_termination()


async def run(channel: grpc.aio.Channel, order: Order) -> Outcome:
    """Run one round, and wait for the last answer of it."""
    tally, body = Tally(order), b"x" * order.body_bytes
    call = channel.unary_unary("/bench.Bench/Echo")
    await asyncio.gather(*(tally.repeat(lambda: call(body)) for _ in range(order.depth)))
    return tally.outcome()


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        if sys.argv[1] == "server":
            runner.run(answer())
        else:

            async def connect() -> grpc.aio.Channel:
                """Make the channel in the loop that will use it."""
                return grpc.aio.insecure_channel(sys.argv[2], options=OPTIONS)

            to_server = runner.run(connect())
            serve(lambda order: runner.run(run(to_server, order)), Order)
