"""The broker's shell over real sockets: no wake-up is lost, nobody waits for a slow or vanished peer, floods share.

The watchdog is switched off here: with it, a lost wake-up would only be late, and these tests would not see it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import msgspec
import pytest
import zmq

from zmqrt.broker import server
from zmqrt.broker.config import BrokerSettings
from zmqrt.protocol import codec, transport
from zmqrt.protocol import messages as m
from zmqrt.protocol.timing import Timing

pytestmark = pytest.mark.integration
T = TypeVar("T", bound=m.Message)
Context = zmq.Context[zmq.Socket[bytes]]
SERVICE = "toy"
ROOM = 100_000
WAIT_MS = 20_000


@pytest.fixture(autouse=True)
def no_watchdog(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nothing rescue a broker that missed a wake-up; put the garbage collector back afterwards."""
    monkeypatch.setattr(server, "_WATCHDOG_S", 3600.0)
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
def context() -> Iterator[Context]:
    """Give the peers' context; it keeps, and at the end closes, every socket made in it."""
    made = transport.make_context()
    kept: list[zmq.Socket[bytes]] = []
    make = made.socket

    def keep(kind: int) -> zmq.Socket[bytes]:
        kept.append(make(kind))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made, "socket", keep)
        yield made
    made.destroy(linger=0)


@dataclasses.dataclass(frozen=True)
class Running:
    """A broker that runs on a loop of another thread."""

    endpoints: dict[str, str]
    loop: asyncio.AbstractEventLoop

    @contextlib.contextmanager
    def standing_still(self) -> Generator[None]:
        """Keep the broker from doing anything for a while; its sockets fill."""
        stands, may_go_on = threading.Event(), threading.Event()

        def stand() -> None:
            stands.set()
            may_go_on.wait(WAIT_MS / 1000)

        self.loop.call_soon_threadsafe(stand)
        assert stands.wait(WAIT_MS / 1000)
        try:
            yield
        finally:
            may_go_on.set()


def during(play: Callable[[Running], None], *, beat_s: float = 600.0) -> None:
    """Run a broker on this thread's loop while `play` talks to it from another one."""
    settings = BrokerSettings(
        clients="tcp://127.0.0.1:0",
        workers="tcp://127.0.0.1:0",
        heartbeat_interval_s=beat_s,
        node_eviction_timeout_s=1200.0,
        max_outstanding=ROOM,
        max_queued_requests=ROOM,
        max_in_flight_requests=ROOM,
    )

    async def main() -> None:
        broker = server.Server(settings)
        ready = asyncio.Event()
        serving = asyncio.create_task(broker.run(ready.set))
        await ready.wait()
        try:
            await asyncio.to_thread(play, Running(broker.endpoints, asyncio.get_running_loop()))
        finally:
            for _ in range(2):  # the second time it stops at once
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.01)
            await serving

    asyncio.run(main())


class Peer:
    """A DEALER that speaks ZRT/1 message by message."""

    def __init__(self, context: Context, endpoint: str, *, is_slow: bool = False) -> None:
        self.socket = transport.make_dealer(context)
        self.socket.sndhwm = 0
        if is_slow:
            self.socket.rcvhwm = 1
            self.socket.rcvbuf = 4096
        transport.connect(self.socket, endpoint)
        assert self.socket.poll(WAIT_MS, zmq.POLLOUT)

    def say(self, *messages: m.Message) -> None:
        """Send each in an envelope of its own."""
        for one in messages:
            for frames in codec.pack([one]):
                transport.send(self.socket, frames)

    def hear(self, known: codec.Codec[T], kind: type[Any], count: int) -> list[Any]:
        """Wait for so many messages of a kind; others are passed over."""
        heard: list[Any] = []
        while len(heard) < count:
            assert self.socket.poll(WAIT_MS), f"{len(heard)} of {count} {kind.__name__} came"
            heard += self.read(known, kind)
        return heard

    def read(self, known: codec.Codec[T], kind: type[Any]) -> list[Any]:
        """Read the envelope that is there; return its messages of a kind."""
        frames = transport.receive(self.socket)
        assert frames is not None
        return [message for message in known.unpack(frames).messages if type(message) is kind]


class ToyClient(Peer):
    """A client whose requests are numbered."""

    def __init__(self, context: Context, endpoint: str, name: str, *, is_slow: bool = False) -> None:
        super().__init__(context, endpoint, is_slow=is_slow)
        self.name = name.encode().rjust(8)
        self.say(m.Hello(self.name + bytes(8), 1, 1))
        self.hear(codec.TO_CLIENT, m.Welcome, 1)

    def rid(self, number: int) -> bytes:
        """Name the request of that number."""
        return self.name + number.to_bytes(8, "big")

    def ask(self, *numbers: int) -> None:
        """Send requests."""
        self.say(*(m.Request(self.rid(one), SERVICE, 30_000, m.IDEMPOTENT, 0, 0, 0, b"?") for one in numbers))

    def answers(self, count: int) -> list[bytes]:
        """Wait for so many answers; return their rids in order."""
        return [one.rid for one in self.hear(codec.TO_CLIENT, m.Final, count)]


class ToyNode(Peer):
    """A worker that does what the test says."""

    def __init__(self, context: Context, endpoint: str) -> None:
        super().__init__(context, endpoint)
        self.limit = ROOM
        self.say(m.Ready(b"w" * 16, "n1", ROOM, [m.ServiceOffer(SERVICE, ROOM, "generate")], []))
        self.epoch: int = self.hear(codec.TO_WORKER, m.WorkerWelcome, 1)[0].epoch
        self.say(m.Heartbeat(self.epoch, 1, 0, ROOM, "ready"))

    def take(self, count: int) -> list[m.Dispatch]:
        """Wait for so many requests."""
        return self.hear(codec.TO_WORKER, m.Dispatch, count)

    def answer(self, *work: m.Dispatch, body: bytes = b"!") -> None:
        """Finish requests, each in an envelope of its own."""
        for one in work:
            self.limit += 1
            self.say(m.WorkerFinal(self.epoch, one.lease, 1, self.limit, {}, body))


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Generator[None, None, None]:
    """Do something on another thread meanwhile."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("beat_s", [600.0, 0.05], ids=["nothing but the burst", "the broker's own sends between"])
def test_a_burst_is_answered_whole(context: Context, beat_s: float) -> None:
    """4,001 messages at once, which came to a stand when a wake-up was eaten by a send or by half a read."""

    def play(broker: Running) -> None:
        node, client = (
            ToyNode(context, broker.endpoints["workers"]),
            ToyClient(context, broker.endpoints["clients"], "a"),
        )

        def work() -> None:
            left, beats = 4001, itertools.count(2)
            while left:
                taken = node.read(codec.TO_WORKER, m.Dispatch) if node.socket.poll(200) else []
                if not taken:  # after 55 ms of silence it gets no work until it is heard again
                    node.say(m.Heartbeat(node.epoch, next(beats), 0, ROOM, "ready"))
                node.answer(*taken)
                left -= len(taken)

        with beside(work):
            client.ask(*range(4001))
            answered = client.answers(4001)
        assert sorted(answered) == [client.rid(number) for number in range(4001)]

    during(play, beat_s=beat_s)


def test_who_does_not_read_waits_alone(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe holds up one client; that one finds everything in order when it reads again."""
    bind: Callable[..., str] = vars(transport)["_bind"]

    def bind_narrow(router: zmq.Socket[bytes], endpoint: str) -> str:
        router.sndhwm, router.sndbuf = 1, 4096
        return bind(router, endpoint)

    monkeypatch.setattr(transport, "_bind", bind_narrow)

    def play(broker: Running) -> None:
        node = ToyNode(context, broker.endpoints["workers"])
        slow = ToyClient(context, broker.endpoints["clients"], "slow", is_slow=True)
        quick = ToyClient(context, broker.endpoints["clients"], "quick")
        slow.ask(*range(250))
        work = node.take(250)
        for number in range(50):
            node.answer(*work[5 * number : 5 * number + 5], body=b"x" * 8000)
            quick.ask(number)
            node.answer(*node.take(1))
            assert quick.answers(1) == [quick.rid(number)]
        assert retries(quick) > 0, "the pipe was never full: this proves nothing"

        assert slow.answers(250) == [slow.rid(one) for one in _numbers(work)]

    during(play)


def _numbers(work: list[m.Dispatch]) -> list[int]:
    return [int.from_bytes(one.rid[8:], "big") for one in work]


def retries(client: ToyClient) -> int:
    """Ask how often the broker found a pipe full."""
    client.say(m.Query(1, "status"))
    status = client.hear(codec.TO_CLIENT, m.Status, 1)[0]
    return int(msgspec.msgpack.decode(status.body)["counters"]["egress_retries"])


def test_the_work_of_a_vanished_client_is_cancelled(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks is found out by a send; after the grace its leases are taken back, others run on."""
    quick = Timing(heartbeat_s=600.0, eviction_s=1200.0, reattach_grace_s=0.1)
    monkeypatch.setattr(BrokerSettings, "timing", property(lambda _: quick))

    def play(broker: Running) -> None:
        node = ToyNode(context, broker.endpoints["workers"])
        gone, here = (ToyClient(context, broker.endpoints["clients"], name) for name in ("gone", "here"))
        gone.ask(*range(20))
        lost = node.take(20)
        here.ask(0)
        kept = node.take(1)

        gone.socket.close(0)

        cancelled = node.hear(codec.TO_WORKER, m.WorkerCancel, 20)
        assert sorted(one.lease for one in cancelled) == sorted(one.lease for one in lost)
        node.answer(*kept)
        assert here.answers(1) == [here.rid(0)]

    during(play)


def test_a_flood_lets_others_through(context: Context) -> None:
    """One client's 20,000 envelopes are sent first; another's request does not wait until they are through.

    It may take some thousands: what was sent last may reach the broker's socket after the broker has gone on.
    """

    def play(broker: Running) -> None:
        node = ToyNode(context, broker.endpoints["workers"])
        flood, quiet = (ToyClient(context, broker.endpoints["clients"], name) for name in ("flood", "quiet"))
        with broker.standing_still():
            flood.ask(*range(20_000))
            quiet.ask(0)

        rids: list[bytes] = []
        while quiet.rid(0) not in rids and len(rids) < 5_000:
            work = node.take(100)
            node.answer(*work)
            rids += [dispatch.rid for dispatch in work]
        assert quiet.rid(0) in rids

    during(play)
