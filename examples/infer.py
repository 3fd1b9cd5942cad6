"""Ask once, and wait for the whole answer. Start a fleet first: `zmqrt up --mock`."""

import os

from zmqrt.client import BusyError, Client

with Client(os.environ.get("ZMQRT_BROKER", "tcp://127.0.0.1:7555")) as client:
    try:
        result = client.infer("What is the capital of France?", max_tokens=32, temperature=0)
    except BusyError as error:  # only once there is no time left: until then the client has asked again by itself
        raise SystemExit(f"too much to do; come back in {error.retry_after_s:.0f} s") from None
    print(result.text)
    print(f"{result.usage.completion_tokens} tokens by {result.model}, because of {result.finish_reason}")
