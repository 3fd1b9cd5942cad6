"""A toy client and a toy worker that speak ZRT/1 through the project's own codec and sockets, and do nothing else.

    python bench/zrt_peers.py client|worker ENDPOINT        with ZMQRT_KEYS set: with the keys of that folder

Neither ever waits in order to fill a batch: whatever one look at the socket brings is answered in one envelope.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import TypeVar

import zmq
from rounds import Order, Outcome, Tally, say, serve

from zmqrt.protocol import codec, transport
from zmqrt.protocol import messages as m
from zmqrt.protocol.failure import PeerRole
from zmqrt.protocol.keys import load_peer

SERVICE = "toy"
_ROOM = 100_000
"""Requests the worker may hold: more than any depth, so credit never decides."""
_WINDOW_STEP_BYTES = 1 << 20
_PATIENCE_MS = 5_000
_BEAT_S = 2.0
T = TypeVar("T", bound=m.Message)


class Peer:
    """A DEALER that sends and takes batches of messages."""

    def __init__(self, endpoint: str, role: PeerRole = "client") -> None:
        folder = os.environ.get("ZMQRT_KEYS")
        keys = load_peer(Path(folder), role) if folder else None
        self.socket = transport.make_dealer(transport.make_context(), keys=keys)
        transport.connect(self.socket, endpoint)
        if not self.socket.poll(_PATIENCE_MS, zmq.POLLOUT):
            raise TimeoutError(f"nobody at {endpoint}")

    def say(self, messages: list[m.Message]) -> None:
        """Send them in one envelope."""
        for frames in codec.pack(messages):
            transport.send(self.socket, frames)

    def hear(self, known: codec.Codec[T], timeout_ms: int) -> list[T]:
        """Wait for an envelope, then take all that are there."""
        heard: list[T] = []
        if self.socket.poll(timeout_ms):
            while (frames := transport.receive(self.socket)) is not None:
                heard += known.unpack(frames).messages
        return heard


def work(endpoint: str) -> None:
    """Answer every DISPATCH with a FINAL of the same body, for ever."""
    peer = Peer(endpoint, "worker")
    offer = m.ServiceOffer(SERVICE, _ROOM, "generate")
    peer.say([m.Ready(os.urandom(16), f"bench-{os.getpid()}", _ROOM, [offer], [])])
    epoch = next(one.epoch for one in peer.hear(codec.TO_WORKER, _PATIENCE_MS) if isinstance(one, m.WorkerWelcome))
    limit, beat_at = _ROOM, 0.0
    for count in itertools.count(1):
        if (now := time.monotonic()) >= beat_at:
            beat_at = now + _BEAT_S
            peer.say([m.Heartbeat(epoch, count, 0, limit, "ready")])
        if count == 1:
            say("ready")
        answers: list[m.Message] = []
        for message in peer.hear(codec.TO_WORKER, 500):
            if type(message) is m.Dispatch:
                limit += 1
                answers.append(m.WorkerFinal(epoch, message.lease, 1, limit, {}, message.body))
        if answers:
            peer.say(answers)


class Client:
    """Keeps a fixed number of requests in flight."""

    def __init__(self, endpoint: str) -> None:
        self._peer = Peer(endpoint, "client")
        self._rids = itertools.count(time.time_ns())
        self._sent_at: dict[bytes, float] = {}
        self._consumed = self._told = 0
        self._body = b""
        self._peer.say([m.Hello(time.time_ns().to_bytes(16, "big"), 1, 1)])
        self._peer.hear(codec.TO_CLIENT, _PATIENCE_MS)

    def run(self, order: Order) -> Outcome:
        """Run one round, and wait for the last answer of it."""
        tally = Tally(order)
        self._body = b"x" * order.body_bytes
        self._ask(order.depth)
        while self._sent_at:
            heard = self._peer.hear(codec.TO_CLIENT, _PATIENCE_MS)
            if not heard:
                raise TimeoutError(f"{len(self._sent_at)} requests were not answered")
            now = time.perf_counter()
            ended = sum([self._take(message, tally, now) for message in heard])
            if ended and now < tally.end_at:
                self._ask(ended)
        return tally.outcome()

    def _ask(self, count: int) -> None:
        now = time.perf_counter()
        requests: list[m.Message] = []
        for _ in range(count):
            rid = next(self._rids).to_bytes(16, "big")
            self._sent_at[rid] = now
            requests.append(m.Request(rid, SERVICE, 30_000, m.IDEMPOTENT, 0, 0, 0, self._body))
        if self._consumed - self._told > _WINDOW_STEP_BYTES:
            self._told = self._consumed
            requests.append(m.Window(self._consumed))
        self._peer.say(requests)

    def _take(self, message: m.ToClient, tally: Tally, now: float) -> bool:
        if type(message) is m.Final:
            tally.latencies_s.append(now - self._sent_at.pop(message.rid))
            self._consumed += len(message.body)
            return True
        if type(message) is m.Error and message.rid is not None:
            del self._sent_at[message.rid]
            tally.refused += 1
            return True
        return False


if __name__ == "__main__":
    role, where = sys.argv[1:]
    if role == "worker":
        work(where)
    else:
        serve(Client(where).run, Order)
