"""HTTP load on kept connections: `python http_load.py URL DEPTH SECONDS MAX_TOKENS [stream]` prints one line of JSON.

Plain asyncio streams and no HTTP library: a client that costs more than the server would measure itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit


class Tally:
    """What all callers have seen."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.latencies: list[float] = []
        self.tokens = 0


async def _caller(host: str, port: int, request: bytes, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    while time.perf_counter() < tally.until:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"answered {head[:60]!r}")
        tokens = await _read_body(reader, head.lower())
        tally.tokens += tokens
        tally.latencies.append(time.perf_counter() - began)
    writer.close()


async def _read_body(reader: asyncio.StreamReader, head: bytes) -> int:
    """Read a body of known length, or chunks until the last; return the token events in it."""
    if b"content-length: " in head:
        length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        return 0
    tokens = 0
    while size := int(await reader.readline(), 16):
        tokens += (await reader.readexactly(size + 2)).count(b"event: token")
    await reader.readline()
    return tokens


async def main() -> None:
    """Run the callers, and print what came of it."""
    url, depth, seconds, max_tokens = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    accept = "text/event-stream" if sys.argv[5:] == ["stream"] else "application/json"
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    body = json.dumps({"prompt": "What is the capital of France?", "max_tokens": max_tokens}).encode()
    head = f"POST /infer HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    began = time.perf_counter()
    tally = Tally(began + seconds)
    await asyncio.gather(*(_caller(place.hostname, place.port, request, tally) for _ in range(depth)))
    elapsed = time.perf_counter() - began
    ordered = sorted(tally.latencies)
    said = {
        "requests_per_s": len(ordered) / elapsed,
        "tokens_per_s": tally.tokens / elapsed,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "requests": len(ordered),
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
