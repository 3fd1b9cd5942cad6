"""A broker played by the test, over real sockets: it welcomes nodes, keeps what they say, and sends what it is told to.

It runs in the test's own thread, inside `until`, so there is nothing to synchronise.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import zmq

from zmqrt.protocol import codec, tasks, transport
from zmqrt.protocol import messages as m
from zmqrt.protocol.tasks import GenerateChunk, GenerateResult
from zmqrt.protocol.timing import Timing

M = TypeVar("M")
RUN = m.IDEMPOTENT | m.RESUMABLE
STREAM = RUN | m.STREAM
_BEAT_S = 0.2


class HandBroker:
    """One backend ROUTER. `said` holds every message of every node, in order of arrival."""

    def __init__(self, *, eviction_s: float = 10.0, endpoint: str = "tcp://127.0.0.1:0") -> None:
        self._context = transport.make_context()
        timing = Timing(eviction_s=eviction_s)
        self._router, self.endpoint = transport.bind_backend(self._context, endpoint, timing=timing)
        self._params = m.Params(1000, int(1000 * eviction_s), 30_000, 256, 1 << 20)
        self._leases = itertools.count(1)
        self._epochs = itertools.count(1)
        self._beat_at = 0.0
        self.is_silent = False
        self.said: list[m.FromWorker] = []
        self.peers: dict[bytes, m.Ready] = {}
        self._heard: dict[bytes, m.BrokerHeartbeat] = {}  # the answer to each peer's last heartbeat
        self.rebound: list[m.Rebound] = []
        self.largest_envelope = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._router.close(0)
        self._context.term()

    # --- hearing

    def until(
        self, condition: Callable[[], object], timeout: float = 20.0, *, beside: Sequence[HandBroker] = ()
    ) -> None:
        """Serve until the condition holds; other brokers may be served beside."""
        give_up_at = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > give_up_at:
                kinds = [type(message).__name__ for message in self.said]
                raise AssertionError(f"not within {timeout} s; the nodes said {kinds[-30:]}")
            for broker in (self, *beside):
                broker.serve(0.01)

    def serve(self, seconds: float) -> None:
        """Take in what arrives within a moment."""
        if time.monotonic() >= self._beat_at and not self.is_silent:
            self._beat_at = time.monotonic() + _BEAT_S
            for peer in self.peers:
                self._send(peer, self._heard.get(peer, m.BrokerHeartbeat(1, 0)))
        if not self._router.poll(int(1000 * seconds)):
            return
        while (got := transport.receive_routed(self._router)) is not None:
            peer, frames = got[0], got[-1]
            unpacked = codec.FROM_WORKER.unpack(frames)
            assert not unpacked.bad
            self.largest_envelope = max(self.largest_envelope, len(unpacked.messages))
            for message in unpacked.messages:
                self._take(peer, message)

    def _take(self, peer: bytes, message: m.FromWorker) -> None:
        self.said.append(message)
        if isinstance(message, m.Ready) and not self.is_silent:
            self.peers = {old: ready for old, ready in self.peers.items() if ready.worker_uuid != message.worker_uuid}
            self.peers[peer] = message
            rebound, self.rebound = self.rebound, []
            self._send(peer, m.WorkerWelcome("hand", 1, next(self._epochs), self._params, rebound))
        elif isinstance(message, m.Heartbeat) and not self.is_silent:
            self._heard[peer] = m.BrokerHeartbeat(message.epoch, message.count)
            self._send(peer, self._heard[peer])

    def all(self, kind: type[M], lease: int | None = None) -> list[M]:
        """Return what was said of one kind (about one lease)."""
        found = [message for message in self.said if isinstance(message, kind)]
        return [one for one in found if lease is None or getattr(one, "lease", None) == lease]

    def last_beat(self) -> m.Heartbeat | None:
        """Return the newest heartbeat."""
        beats = self.all(m.Heartbeat)
        return beats[-1] if beats else None

    def phases(self) -> list[str]:
        """Return the phase of each device as last told."""
        beat = self.last_beat()
        return [device.phase for device in beat.devices] if beat else []

    def credit(self) -> int:
        """Return the highest limit of the present epoch."""
        welcome = max(index for index, message in enumerate(self.said) if isinstance(message, m.Ready))
        return max((getattr(one, "dispatch_limit", 0) for one in self.said[welcome:]), default=0)

    def ids(self, lease: int) -> list[int]:
        """Return the ids of a lease; checks that its units are complete and in order."""
        ids: list[int] = []
        first = None
        for partial in self.all(m.WorkerPartial, lease):
            chunk = tasks.decode(partial.body, GenerateChunk)
            first = partial.seq if first is None else first
            assert partial.seq == first + len(ids)
            assert partial.n == len(chunk.ids) == len(chunk.text)
            ids += chunk.ids
        return ids

    def text(self, lease: int) -> str:
        """Return the text of a lease so far."""
        return "".join("".join(tasks.decode(one.body, GenerateChunk).text) for one in self.all(m.WorkerPartial, lease))

    def outcome(self, lease: int) -> m.WorkerFinal | m.WorkerError | None:
        """Return how a lease ended, if it has; checks that it ended once."""
        ends: list[m.WorkerFinal | m.WorkerError] = [*self.all(m.WorkerFinal, lease), *self.all(m.WorkerError, lease)]
        assert len(ends) <= 1
        return ends[0] if ends else None

    def result(self, lease: int) -> GenerateResult:
        """Return the result of a lease that has ended well."""
        end = self.outcome(lease)
        assert isinstance(end, m.WorkerFinal), end
        return tasks.decode(end.body, GenerateResult)

    # --- speaking

    def tell(self, *messages: m.ToWorker) -> None:
        """Send messages to the only node."""
        (peer,) = self.peers
        self._send(peer, *messages)

    def dispatch(
        self,
        body: bytes,
        *,
        service: str = "mock",
        flags: int = STREAM,
        rid: bytes | None = None,
        ttl_ms: int = 30_000,
        seed: int = 5,
        prefix: Sequence[GenerateChunk] = (),
    ) -> int:
        """Send a request to the only node; return its lease."""
        lease = next(self._leases)
        resume = msgspec.msgpack.encode([tasks.encode(chunk) for chunk in prefix]) if prefix else b""
        resume_n = sum(len(chunk.ids) for chunk in prefix)
        rid = rid or lease.to_bytes(16, "big")
        self.tell(m.Dispatch(lease, service, ttl_ms, flags, 1, resume_n, rid, "u", body, resume, {"seed": seed}))
        return lease

    def _send(self, peer: bytes, *messages: m.ToWorker) -> None:
        try:
            for frames in codec.pack(messages):
                transport.send_routed(self._router, peer, frames)
        except zmq.ZMQError:
            self.peers.pop(peer, None)  # it is gone
