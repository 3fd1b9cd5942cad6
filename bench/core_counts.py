"""What one request and one token cost the cores of broker and client, counted and not timed.

Counted are bytecodes executed and C functions called in our own modules, between an envelope that came in and those
that go out, codec included. The same code gives the same counts on every machine, however busy; another version of
Python gives others. The work inside C functions (decoding, say) is not seen: only that they were called.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Protocol, TypeVar

import msgspec

from zmqrt.broker.bounds import Bounds
from zmqrt.broker.core import Broker
from zmqrt.broker.state import CLIENTS, WORKERS, Side
from zmqrt.client import calls
from zmqrt.client.config import ClientConfig
from zmqrt.client.core import ClientCore
from zmqrt.client.failover import OpenSocket
from zmqrt.client.requests import ClientRequest
from zmqrt.client.response import Event
from zmqrt.protocol import codec, tasks
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Timing

T = TypeVar("T")
SERVICE: Final = "toy"
_WARM_UP: Final = 5
_ROUNDS: Final = 20
_ROOM: Final = 100_000
_PASS_S: Final = 0.0001
"""How far each pass moves the clock: little, so that no timer fires."""
_CLIENT, _NODE = b"client", b"node"
CHUNK: Final = tasks.encode(tasks.GenerateChunk(ids=[97], text=["a"]))
RESULT: Final = tasks.encode(
    tasks.GenerateResult(
        finish_reason="length",
        usage=tasks.Usage(prompt_tokens=1, completion_tokens=1),
        seed=1,
        model="toy",
        revision="r",
    )
)
PARAMS: Final = m.Params(5000, 10_000, 30_000, 256, 8 << 20)


class Count(msgspec.Struct):
    """What was counted, for each request or token."""

    bytecodes: float = 0.0
    c_calls: float = 0.0


@contextmanager
def counting(count: Count) -> Generator[None]:
    """Add to `count` what our own modules do meanwhile."""

    def trace(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - itself
        if event == "call":
            if not frame.f_globals.get("__name__", "").startswith("zmqrt."):
                return None
            frame.f_trace_lines, frame.f_trace_opcodes = False, True
        elif event == "opcode":
            count.bytecodes += 1
        return trace

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "c_call" and frame.f_globals.get("__name__", "").startswith("zmqrt."):
            count.c_calls += 1

    before = sys.getprofile(), sys.gettrace()
    sys.setprofile(profile)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.setprofile(before[0])
        sys.settrace(before[1])


class Talk(Protocol[T]):
    """A core and its peers; a T names a request."""

    count: Count
    is_counting: bool

    def ask(self, number: int, *, stream: bool) -> list[T]:
        """Have requests made, in one envelope."""
        ...

    def token(self, asked: list[T], seq: int) -> None:
        """Have each stream get its next token, in one envelope."""
        ...

    def end(self, asked: list[T]) -> None:
        """Have each request answered, in one envelope."""
        ...


class BrokerTalk:
    """A broker, a client and a node, without sockets: envelopes go in as bytes and come out as bytes."""

    def __init__(self) -> None:
        ids = itertools.count(1)
        bounds = Bounds(outstanding=_ROOM, queue_requests=_ROOM, in_flight=_ROOM, node_capacity=_ROOM)
        self._broker = Broker(Timing(), bounds, ids.__next__, broker_id="b", broker_epoch=1, now=0.0)
        self._now = 0.0
        self._rids = itertools.count(1)
        self._limit = _ROOM
        self.count = Count()
        self.is_counting = False
        offer = m.ServiceOffer(SERVICE, _ROOM, "generate", context=1000)
        self._pass(WORKERS, [m.Ready(b"n" * 16, "node", _ROOM, [offer], [])])
        (welcome,) = self.told_worker
        assert isinstance(welcome, m.WorkerWelcome)
        self._epoch = welcome.epoch
        self._pass(WORKERS, [m.Heartbeat(self._epoch, 1, 0, _ROOM, "ready")])
        self._pass(CLIENTS, [m.Hello(b"c" * 16, 1, 1)])

    def _pass(self, side: Side, messages: list[m.Message]) -> None:
        """Give the broker one envelope, and take apart what it says."""
        self._now += _PASS_S
        (frames,) = codec.pack(messages)
        with counting(self.count) if self.is_counting else idle():
            known = codec.FROM_WORKER if side is WORKERS else codec.FROM_CLIENT
            self._broker.handle(side, _NODE if side is WORKERS else _CLIENT, known.unpack(frames).messages, self._now)
            out = self._broker.out[:]
            self._broker.out.clear()
            to_node = [message for to, _, message in out if to is WORKERS]
            to_client = [message for to, _, message in out if to is CLIENTS]
            envelopes = [codec.pack(messages) if messages else [] for messages in (to_node, to_client)]
        self.told_worker = [one for frames in envelopes[0] for one in codec.TO_WORKER.unpack(frames).messages]
        self.told_client = [one for frames in envelopes[1] for one in codec.TO_CLIENT.unpack(frames).messages]

    def ask(self, number: int, *, stream: bool) -> list[int]:
        """Send requests in one envelope; return their leases."""
        flags = m.IDEMPOTENT | m.RESUMABLE | (m.STREAM if stream else 0)
        body = tasks.encode(tasks.Generate(prompt="x" * 100))
        rids = [next(self._rids).to_bytes(16, "big") for _ in range(number)]
        self._pass(CLIENTS, [m.Request(rid, SERVICE, 30_000, flags, 0, 0, 0, body) for rid in rids])
        leases = [one.lease for one in self.told_worker if isinstance(one, m.Dispatch)]
        assert len(leases) == number
        return leases

    def token(self, asked: list[int], seq: int) -> None:
        """Let each lease have its next token, in one envelope."""
        self._pass(WORKERS, [m.WorkerPartial(self._epoch, lease, seq, 1, CHUNK) for lease in asked])
        assert sum(isinstance(one, m.Partial) for one in self.told_client) == len(asked)

    def end(self, asked: list[int]) -> None:
        """End each lease, in one envelope."""
        self._limit += len(asked)
        finals = [m.WorkerFinal(self._epoch, lease, 0, self._limit, {}, RESULT) for lease in asked]
        self._pass(WORKERS, [*finals])
        assert sum(isinstance(one, m.Final) for one in self.told_client) == len(asked)


class _Ear:
    """Takes what comes."""

    def __init__(self) -> None:
        self.heard = 0

    def put(self, event: Event) -> bool:
        """Count it."""
        self.heard += 1
        return not isinstance(event, Exception)


class ClientTalk:
    """A client's core and a broker played by hand."""

    def __init__(self) -> None:
        self._config = ClientConfig(endpoints=("tcp://a:1",))
        self._core = ClientCore(self._config, b"u" * 16, random.Random(1))
        self._now = 100.0
        self._core.start(self._now)
        self._core.tick(self._now)
        self.count = Count()
        self.is_counting = False
        (self._connection,) = [one.connection for one in self._core.take_actions() if isinstance(one, OpenSocket)]
        self._core.connection_ready(self._connection, self._now)
        self._said()
        self._hear([m.Welcome("b", 1, PARAMS)])

    def _said(self) -> list[m.FromClient]:
        messages = self._connection.outbox[:]
        self._connection.outbox.clear()
        if messages:
            self._connection.note_sent(self._now)
            envelopes = codec.pack(messages)
            return [one for frames in envelopes for one in codec.FROM_CLIENT.unpack(frames).messages]
        return []

    def _hear(self, messages: list[m.Message]) -> None:
        """Give the core one envelope, and hand its events out."""
        self._now += _PASS_S
        (frames,) = codec.pack(messages)
        with counting(self.count) if self.is_counting else idle():
            self._core.received(self._connection, codec.TO_CLIENT.unpack(frames).messages, self._now)
            for sink, event in self._core.take_events():
                sink.put(event)

    def ask(self, number: int, *, stream: bool) -> list[bytes]:
        """Submit requests in one pass; return their rids."""
        self._now += _PASS_S
        with counting(self.count) if self.is_counting else idle():
            for _ in range(number):
                call = calls.generate(self._config, "x" * 100, stream=stream, options={"model": SERVICE, "raw": True})
                self._core.submit(ClientRequest(call, _Ear(), self._now), self._now)
            outbox = self._connection.outbox[:]
            codec.pack(outbox)
        rids = [one.rid for one in self._said() if isinstance(one, m.Request)]
        assert len(rids) == number
        return rids

    def token(self, asked: list[bytes], seq: int) -> None:
        """Let each stream have its next token, in one envelope."""
        self._hear([m.Partial(rid, seq, 1, CHUNK) for rid in asked])

    def end(self, asked: list[bytes]) -> None:
        """End each request, in one envelope."""
        self._hear([m.Final(rid, 0, {}, RESULT) for rid in asked])
        assert not self._core.table.live


@contextmanager
def idle() -> Generator[None]:
    """Count nothing."""
    yield


def requests(talk: Talk[T], depth: int, rounds: int = _ROUNDS) -> Count:
    """Count whole answers, `depth` at a time."""
    for number in range(_WARM_UP + rounds):
        talk.is_counting = number >= _WARM_UP
        talk.end(talk.ask(depth, stream=False))
    return _per(talk.count, depth * rounds)


def tokens(talk: Talk[T], streams: int, rounds: int = _ROUNDS) -> Count:
    """Count the tokens of streams that run at the same time, not their beginnings and ends."""
    asked = talk.ask(streams, stream=True)
    for seq in range(_WARM_UP + rounds):
        talk.is_counting = seq >= _WARM_UP
        talk.token(asked, seq)
    return _per(talk.count, streams * rounds)


def _per(count: Count, units: int) -> Count:
    return Count(round(count.bytecodes / units, 1), round(count.c_calls / units, 1))


def measure() -> dict[str, Count]:
    """Count everything: a name for each load, and what a request or a token of it costs."""
    return _of("broker", BrokerTalk) | _of("client", ClientTalk)


def _of(name: str, make: Callable[[], Talk[T]]) -> dict[str, Count]:
    counts: dict[str, Count] = {}
    for depth in (1, 64):
        counts[f"{name}: a request, {depth} at once"] = requests(make(), depth)
        counts[f"{name}: a token, {depth} at once"] = tokens(make(), depth)
    return counts


if __name__ == "__main__":
    for load, count in measure().items():
        print(f"{load:<36}{count.bytecodes:>10,.1f} bytecodes{count.c_calls:>8,.1f} C calls")
