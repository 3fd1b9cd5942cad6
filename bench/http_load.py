"""HTTP load on kept connections: `python http_load.py` reads a `CallOrder` a line and writes a `CallOutcome` for each.

Bare sockets and one poll, no HTTP library: a client that costs more than the server would measure itself. What it
costs is told with each round.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from typing import Final
from urllib.parse import urlsplit

from rounds import CallOrder, CallOutcome, Tally, serve

PATIENCE_S: Final = 20.0
"""How long after the end of a round an answer may come; one that has not come by then counts as stalled."""
_END: Final = b"\r\n0\r\n\r\n"
_EVENT: Final = b"data:"


class Caller:
    """One connection, with one request at a time."""

    def __init__(self, order: CallOrder, number: int) -> None:
        place = urlsplit(order.url)
        self.socket = socket.create_connection((place.hostname or "", place.port or 80))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.events = 0
        self.is_fine = True
        """The last answer had status 200, and a stream the word that ends it."""
        self.began_at = 0.0
        self._request = _request(order, number)
        self._is_ended = False
        self._end_mark = order.end_mark.encode()
        self._head: bytes | None = b""
        self._left = 0
        """Bytes of the body that are to come; below 0 it comes in chunks."""
        self._tail = b""

    def ask(self) -> None:
        """Send the request."""
        self.began_at = time.perf_counter()
        self._head, self._tail = b"", b""
        self.socket.sendall(self._request)

    def take(self) -> bool:
        """Read what is there; return whether the answer is whole."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionError(f"closed by the server after {(self._head or self._tail)[-80:]!r}")
        if self._head is not None:
            head, found, data = (self._head + data).partition(b"\r\n\r\n")
            if not found:
                self._head = head
                return False
            self._begin(head)
        if self._left >= 0:
            self._left -= len(data)
            return self._left <= 0
        # A mark may lie across two reads.
        seen = self._tail + data
        self.events += seen.count(_EVENT) - self._tail.count(_EVENT)
        self._is_ended = self._is_ended or self._end_mark in seen
        self._tail = seen[-16:]
        if not seen.endswith(_END):
            return False
        self.is_fine = self.is_fine and self._is_ended
        return True

    def _begin(self, head: bytes) -> None:
        self._head = None
        self.is_fine = head[9:12] == b"200"
        self._is_ended = False
        _, found, rest = head.lower().partition(b"\r\ncontent-length:")
        self._left = int(rest.split(b"\r\n", 1)[0]) if found else -1
        # So that an empty body, whose end has no line before it, ends too.
        self._tail = b"\r\n"


def _request(order: CallOrder, number: int) -> bytes:
    """Write the request of one caller, whose prompt is its own."""
    prompt = f"Caller {number:03d} asks: ".ljust(100, "?")
    body: dict[str, object] = {"max_tokens": order.max_tokens}
    if order.model:
        body |= {"model": order.model, "messages": [{"role": "user", "content": prompt}]}
        body |= {"stream": True} if order.is_stream else {}
    else:
        body |= {"prompt": prompt}
    accept = "text/event-stream" if order.is_stream else "application/json"
    content = json.dumps(body).encode()
    place = urlsplit(order.url)
    return (
        f"POST {place.path} HTTP/1.1\r\nhost: {place.netloc}\r\naccept: {accept}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    ).encode() + content


def run(order: CallOrder) -> CallOutcome:
    """Run one round, and wait for the last answer of it."""
    callers = {one.socket.fileno(): one for one in (Caller(order, number) for number in range(order.depth))}
    tally, used_s, events = Tally(order), time.process_time(), 0
    with selectors.DefaultSelector() as selector:
        for caller in callers.values():
            selector.register(caller.socket, selectors.EVENT_READ, caller)
            caller.ask()
        while callers and time.perf_counter() < tally.end_at + PATIENCE_S:
            for key, _ in selector.select(1.0):
                caller = key.data
                if not caller.take():
                    continue
                now = time.perf_counter()
                if caller.is_fine:
                    tally.latencies_s.append(now - caller.began_at)
                else:
                    tally.refused += 1
                if now < tally.end_at:
                    caller.ask()
                else:
                    events += caller.events
                    del callers[key.fd]
                    selector.unregister(caller.socket)
                    caller.socket.close()
    for caller in callers.values():
        events += caller.events
        caller.socket.close()
    return tally.call_outcome(stalled=len(callers), events=events, used_s=used_s)


if __name__ == "__main__":
    serve(run, CallOrder)
