"""The yardstick: libzmq's own proxy, written in C, between a plain DEALER client and a plain DEALER worker.

    python bench/plain_peers.py proxy | client ENDPOINT | worker ENDPOINT

One message a request, since a proxy cannot take a batch apart. The peers are as fast as pyzmq goes: they call the
compiled methods, with flags that are plain integers, and drain their socket each time they wake up.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Final

import zmq
from rounds import Order, Outcome, Tally, say, serve

_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.SNDMORE | zmq.NOBLOCK)
_PATIENCE_MS = 5_000


def forward() -> None:
    """Be the proxy, for ever."""
    context = zmq.Context(2)  # as many I/O threads as the broker has
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for one in (front, back):
        one.sndhwm = one.rcvhwm = 0
        one.bind("tcp://127.0.0.1:*")
    ends = {"clients": _endpoint(front), "workers": _endpoint(back)}
    say(json.dumps({"event": "ready", "endpoints": ends}))
    zmq.proxy(front, back)


def _endpoint(socket: zmq.Socket[bytes]) -> str:
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def connect(endpoint: str) -> zmq.Socket[bytes]:
    """Make a DEALER without limits."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.sndhwm = socket.rcvhwm = 0
    socket.linger = 0
    socket.connect(endpoint)
    return socket


def work(endpoint: str) -> None:
    """Send every message back, for ever."""
    socket = connect(endpoint)
    recv, send = socket.recv, super(zmq.Socket, socket).send  # `Socket.send` is a layer of Python above this one
    say("ready")
    while True:
        client = recv(0)
        try:
            while True:
                body = recv(_NOBLOCK)
                send(client, _MORE)
                send(body, _NOBLOCK)
                client = recv(_NOBLOCK)
        except zmq.Again:
            pass


class Client:
    """Keeps a fixed number of requests in flight."""

    def __init__(self, endpoint: str) -> None:
        self._socket = connect(endpoint)
        self._rids = itertools.count(1)
        self._sent_at: dict[bytes, float] = {}
        self._body = b""

    def run(self, order: Order) -> Outcome:
        """Run one round, and wait for the last answer of it."""
        tally = Tally(order)
        self._body = b"x" * order.body_bytes
        self._ask(order.depth)
        while self._sent_at:
            if not self._socket.poll(_PATIENCE_MS):
                raise TimeoutError(f"{len(self._sent_at)} requests were not answered")
            ended = self._take(tally)
            if time.perf_counter() < tally.end_at:
                self._ask(ended)
        return tally.outcome()

    def _ask(self, count: int) -> None:
        send, now = super(zmq.Socket, self._socket).send, time.perf_counter()
        for _ in range(count):
            rid = next(self._rids).to_bytes(16, "big")
            self._sent_at[rid] = now
            send(rid + self._body, _NOBLOCK)

    def _take(self, tally: Tally) -> int:
        """Take every answer that is there; return how many."""
        recv, sent_at, latencies_s = self._socket.recv, self._sent_at, tally.latencies_s
        before, now = len(sent_at), time.perf_counter()
        try:
            while sent_at:
                latencies_s.append(now - sent_at.pop(recv(_NOBLOCK)[:16]))
        except zmq.Again:
            pass
        return before - len(sent_at)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", where]:
            work(where)
        case ["client", where]:
            serve(Client(where).run, Order)
        case _:
            forward()
