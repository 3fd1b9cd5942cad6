"""Toy peers at the level of the codec, for benchmarks: a client and a worker in one thread, as fast as Python goes.

Each keeps a fixed number of requests in flight and never waits in order to fill a batch: whatever one pass brings is
answered in one envelope.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

import zmq

from zmqrt.protocol import codec, transport
from zmqrt.protocol import messages as m

NOBLOCK = int(zmq.NOBLOCK)
MORE = int(zmq.SNDMORE)
SERVICE = "toy"
BODY = b"x" * 100
_LIMIT_AHEAD = 100_000
Codec = codec.Codec[m.ToClient] | codec.Codec[m.ToWorker]


@dataclass
class Tally:
    """What one round brought."""

    answered: int = 0
    refused: int = 0
    latencies_s: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return a latency in microseconds."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e6 if ordered else 0.0


class BrokerLoad:
    """A client and a worker of a ZRT/1 broker."""

    def __init__(self, clients: str, workers: str) -> None:
        self._context = transport.make_context()
        self._client = self._connect(clients)
        self._worker = self._connect(workers)
        self._rids = itertools.count(time.time_ns())
        self._sent_at: dict[bytes, float] = {}
        self._consumed = self._told = 0
        self._epoch = self._limit = 0
        self._beats = itertools.count(1)
        self._beat_at = 0.0
        self._join()

    def _connect(self, endpoint: str) -> zmq.Socket[bytes]:
        dealer = transport.make_dealer(self._context)
        transport.connect(dealer, endpoint)
        assert dealer.poll(5000, zmq.POLLOUT), f"nobody at {endpoint}"
        return dealer

    def _join(self) -> None:
        offer = m.ServiceOffer(SERVICE, _LIMIT_AHEAD, "generate")
        self._say(self._worker, [m.Ready(b"bench-worker-001", "bench", _LIMIT_AHEAD, [offer], [])])
        assert self._worker.poll(5000)
        for message in self._hear(self._worker, codec.TO_WORKER):
            if isinstance(message, m.WorkerWelcome):
                self._epoch = message.epoch
        self._limit = _LIMIT_AHEAD
        self._beat(time.perf_counter())
        self._say(self._client, [m.Hello(b"bench-client-001", 1, 1)])
        assert self._client.poll(5000)
        self._hear(self._client, codec.TO_CLIENT)

    def run(self, in_flight: int, seconds: float) -> Tally:
        """Keep so many requests in flight for so long."""
        tally = Tally()
        self._ask(in_flight, time.perf_counter())
        poller = zmq.Poller()
        poller.register(self._client, zmq.POLLIN)
        poller.register(self._worker, zmq.POLLIN)
        end = time.perf_counter() + seconds
        while self._sent_at:
            poller.poll(1000)
            now = time.perf_counter()
            self._work(now)
            ended = self._collect(tally)
            if ended and now < end:
                self._ask(ended, now)
            elif now > end + 5:
                raise TimeoutError(f"{len(self._sent_at)} requests were never answered")
        return tally

    def _ask(self, count: int, now: float) -> None:
        requests: list[m.Message] = []
        for _ in range(count):
            rid = next(self._rids).to_bytes(16, "big")
            self._sent_at[rid] = now
            requests.append(m.Request(rid, SERVICE, 30_000, m.IDEMPOTENT, 0, 0, 0, BODY))
        if self._consumed - self._told > 1 << 20:
            self._told = self._consumed
            requests.append(m.Window(self._consumed))
        self._say(self._client, requests)

    def _work(self, now: float) -> None:
        answers: list[m.Message] = []
        for message in self._hear(self._worker, codec.TO_WORKER):
            if type(message) is m.Dispatch:
                self._limit += 1
                answers.append(m.WorkerFinal(self._epoch, message.lease, 1, self._limit, {}, BODY))
        if answers:
            self._say(self._worker, answers)
        if now > self._beat_at:
            self._beat(now)

    def _beat(self, now: float) -> None:
        self._beat_at = now + 2.0
        self._say(self._worker, [m.Heartbeat(self._epoch, next(self._beats), 0, self._limit, "ready")])

    def _collect(self, tally: Tally) -> int:
        ended = 0
        now = time.perf_counter()
        for message in self._hear(self._client, codec.TO_CLIENT):
            if type(message) is m.Final:
                tally.answered += 1
                tally.latencies_s.append(now - self._sent_at.pop(message.rid))
                self._consumed += len(message.body)
                ended += 1
            elif type(message) is m.Error and message.rid is not None:
                tally.refused += 1
                del self._sent_at[message.rid]
                ended += 1
        return ended

    def _say(self, socket: zmq.Socket[bytes], messages: list[m.Message]) -> None:
        for frames in codec.pack(messages):
            transport.send(socket, frames)

    def _hear(
        self, socket: zmq.Socket[bytes], what: codec.Codec[m.ToClient] | codec.Codec[m.ToWorker]
    ) -> list[m.Message]:
        heard: list[m.Message] = []
        while (frames := transport.receive(socket)) is not None:
            heard += what.unpack(frames).messages
        return heard

    def close(self) -> None:
        """Leave."""
        self._say(self._client, [m.Bye()])
        self._say(self._worker, [m.Leave(self._epoch)])
        self._context.destroy(linger=200)


class ProxyLoad:
    """The same through `zmq.proxy`: one message for each request, since a proxy cannot take a batch apart."""

    def __init__(self, clients: str, workers: str) -> None:
        self._context = transport.make_context()
        self._client = self._context.socket(zmq.DEALER)
        self._worker = self._context.socket(zmq.DEALER)
        for one in (self._client, self._worker):
            one.sndhwm = one.rcvhwm = 0
        self._client.connect(clients)
        self._worker.connect(workers)
        self._rids = itertools.count(1)
        self._sent_at: dict[bytes, float] = {}
        self._send, self._recv = self._client.send, self._client.recv

    def run(self, in_flight: int, seconds: float) -> Tally:
        """Keep so many requests in flight for so long."""
        tally = Tally()
        self._ask(in_flight, time.perf_counter())
        poller = zmq.Poller()
        poller.register(self._client, zmq.POLLIN)
        poller.register(self._worker, zmq.POLLIN)
        end = time.perf_counter() + seconds
        while self._sent_at:
            ready = dict(poller.poll(5000))
            assert ready, "the proxy lost a request"
            if self._worker in ready:
                self._work()
            if self._client in ready:
                ended = self._collect(tally)
                now = time.perf_counter()
                if now < end:
                    self._ask(ended, now)
        return tally

    def _ask(self, count: int, now: float) -> None:
        for _ in range(count):
            rid = next(self._rids).to_bytes(16, "big")
            self._sent_at[rid] = now
            self._send(rid + BODY, NOBLOCK)

    def _work(self) -> None:
        recv, send = self._worker.recv, self._worker.send
        try:
            while True:
                routing = recv(NOBLOCK)
                body = recv(NOBLOCK)
                send(routing, MORE | NOBLOCK)
                send(body, NOBLOCK)
        except zmq.Again:
            return

    def _collect(self, tally: Tally) -> int:
        now, ended, recv = time.perf_counter(), 0, self._recv
        try:
            while True:
                reply = recv(NOBLOCK)
                tally.latencies_s.append(now - self._sent_at.pop(reply[:16]))
                ended += 1
        except zmq.Again:
            tally.answered += ended
            return ended

    def close(self) -> None:
        """Leave."""
        self._context.destroy(linger=0)
