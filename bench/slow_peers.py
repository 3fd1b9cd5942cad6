"""A worker that pours out bytes, and a client that asks for them and may not read them.

    python bench/slow_peers.py worker|client ENDPOINT

The client does what the lines on its standard input say, until the next one: `reads`, `stuck`, or `none`.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from queue import Empty, SimpleQueue

import zmq
from rounds import say
from zrt_peers import Peer

from zmqrt.protocol import codec
from zmqrt.protocol import messages as m

SERVICE = "pour"
PIECE = b"x" * (16 << 10)
EVERY_S = 0.002
"""Eight megabytes a second: the window of eight is full, and its owner given up, in the middle of a usual round."""
_ROOM = 64
_BEAT_S = 2.0
_PATIENCE_MS = 5_000
_WINDOW_STEP_BYTES = 1 << 20


def work(endpoint: str) -> None:
    """Pour a piece for each request that runs, every few milliseconds, for ever."""
    peer = Peer(endpoint)
    peer.say([m.Ready(b"bench-worker-pou", "pour", _ROOM, [m.ServiceOffer(SERVICE, _ROOM, "generate")], [])])
    epoch = next(one.epoch for one in peer.hear(codec.TO_WORKER, _PATIENCE_MS) if isinstance(one, m.WorkerWelcome))
    seqs: dict[int, int] = {}
    limit, beat_at, count = _ROOM, 0.0, itertools.count(1)
    while True:
        if (now := time.monotonic()) >= beat_at:
            if not beat_at:
                say("ready")
            beat_at = now + _BEAT_S
            peer.say([m.Heartbeat(epoch, next(count), 0, limit, "ready")])
        for message in peer.hear(codec.TO_WORKER, int(EVERY_S * 1000)):
            if type(message) is m.Dispatch:
                limit += 1
                seqs[message.lease] = 0
            elif type(message) is m.WorkerCancel:
                seqs.pop(message.lease, None)
        if seqs:
            peer.say([m.WorkerPartial(epoch, lease, seq, 1, PIECE) for lease, seq in seqs.items()])
            seqs = {lease: seq + 1 for lease, seq in seqs.items()}


class Sitter:
    """A client with one stream."""

    def __init__(self, endpoint: str) -> None:
        self._peer = Peer(endpoint)
        self._peer.socket.setsockopt(zmq.LINGER, 200)
        self._consumed = self._told = 0
        self._rid = time.time_ns().to_bytes(16, "big")
        flags = m.STREAM | m.IDEMPOTENT | m.RESUMABLE
        hello = m.Hello(time.time_ns().to_bytes(16, "little"), 1, 1)
        self._peer.say([hello, m.Request(self._rid, SERVICE, 60_000, flags, 0, 0, 0, b"")])

    def read(self) -> None:
        """Take what is there, and say how much that was."""
        for message in self._peer.hear(codec.TO_CLIENT, 10):
            if type(message) is m.Partial:
                self._consumed += len(message.body)
        if self._consumed - self._told >= _WINDOW_STEP_BYTES:
            self._told = self._consumed
            self._peer.say([m.Window(self._consumed)])

    def leave(self) -> None:
        """Give the stream up."""
        self._peer.say([m.Cancel(self._rid), m.Bye()])
        self._peer.socket.close()


def sit(endpoint: str) -> None:
    """Obey."""
    orders: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,)).start()
    say("ready")
    sitter: Sitter | None = None
    order = "none"
    while order != "end":
        try:
            order = orders.get(block=order != "reads")
        except Empty:
            assert sitter is not None
            sitter.read()
            continue
        if sitter is not None:
            sitter.leave()
        sitter = Sitter(endpoint) if order in ("reads", "stuck") else None


def _listen(orders: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        orders.put(line.strip())
    orders.put("end")


if __name__ == "__main__":
    role, where = sys.argv[1:]
    if role == "worker":
        work(where)
    else:
        sit(where)
