"""Read an answer while it is made, and stop when it is enough: leaving the block cancels the request."""

import os

from zmqrt.client import Client

with (
    Client(os.environ.get("ZMQRT_BROKER", "tcp://127.0.0.1:7555")) as client,
    client.stream("Tell me a story", max_tokens=500, seed=7) as stream,
):
    for chunk in stream:
        print(chunk.text, end="", flush=True)
        if chunk.index > 20:
            break
print(" …")
