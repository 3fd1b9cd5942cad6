"""A broker process and peers that send rubbish: it serves everybody else meanwhile, counts, and does not grow."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import msgspec
import psutil
import pytest
import zmq

from support.stack import Process, eventually, start
from zmqrt.protocol import codec, snapshot, transport
from zmqrt.protocol import messages as m
from zmqrt.protocol.limits import MAX_FRAME_BYTES

pytestmark = pytest.mark.integration
SERVICE = "toy"
ENVELOPES = 3000
WAIT_MS = 20_000
GROWTH_BYTES = 48 << 20
"""Twice what 430 connections, each with a session and full pipes, were seen to cost."""


class Network:
    """Where the peers' connections are made, and closed at the end."""

    def __init__(self) -> None:
        self._context = transport.make_context()
        self._open: list[zmq.Socket[bytes]] = []

    def dial(self, endpoint: str) -> zmq.Socket[bytes]:
        """Open a connection, and wait until it stands."""
        dealer = transport.make_dealer(self._context)
        self._open.append(dealer)
        transport.connect(dealer, endpoint)
        assert dealer.poll(WAIT_MS, zmq.POLLOUT)
        return dealer

    def close(self) -> None:
        """Close everything."""
        for dealer in self._open:
            dealer.close(0)
        self._context.term()


@pytest.fixture
def network() -> Iterator[Network]:
    """Give the peers' connections."""
    made = Network()
    yield made
    made.close()


@pytest.fixture
def broker() -> Iterator[Process]:
    """Run a broker."""
    process = start("broker", "--clients", "tcp://127.0.0.1:0", "--workers", "tcp://127.0.0.1:0")
    yield process
    process.stop()


def say(dealer: zmq.Socket[bytes], *messages: m.Message) -> None:
    """Send messages in one envelope."""
    for frames in codec.pack(messages):
        transport.send(dealer, frames)


class Service(threading.Thread):
    """A node that answers everything, and says which bodies it got."""

    def __init__(self, network: Network, endpoint: str) -> None:
        super().__init__(daemon=True)
        self._dealer = network.dial(endpoint)
        self._over = threading.Event()
        self.bodies: set[bytes] = set()
        say(self._dealer, m.Ready(b"n" * 16, "n", 1000, [m.ServiceOffer(SERVICE, 1000, "generate")], []))

    def run(self) -> None:
        """Work until told to stop."""
        epoch = beats = 0
        limit = 1000
        while not self._over.is_set():
            said: list[m.Message] = []
            if self._dealer.poll(100) and (frames := transport.receive(self._dealer)) is not None:
                for message in codec.TO_WORKER.unpack(frames).messages:
                    if isinstance(message, m.WorkerWelcome):
                        epoch = message.epoch
                    elif isinstance(message, m.Dispatch):
                        limit += 1
                        self.bodies.add(message.body)
                        said.append(m.WorkerFinal(epoch, message.lease, 0, limit, {}, message.body))
            else:
                beats += 1
                said.append(m.Heartbeat(epoch, beats, 0, limit, "ready"))
            say(self._dealer, *said)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


class Honest:
    """A client that keeps to the rules, and is answered."""

    def __init__(self, network: Network, endpoint: str) -> None:
        self._dealer = network.dial(endpoint)
        self._asked = 0
        say(self._dealer, m.Hello(b"h" * 16, 1, 1))

    def ask(self) -> None:
        """Send a request and insist on its answer."""
        self._asked += 1
        rid = self._asked.to_bytes(16, "big")
        say(self._dealer, m.Request(rid, SERVICE, 20_000, m.IDEMPOTENT, 0, 0, 0, rid))
        assert self._wait_for(m.Final).body == rid

    def status(self) -> snapshot.Snapshot:
        """Ask the broker about itself, again when it says so to who asks too often."""
        while True:
            say(self._dealer, m.Query(1, "status"))
            answer = self._wait_for(m.Status)
            if answer.schema != snapshot.LATER:
                return snapshot.decode(answer.body)
            time.sleep(answer.ext["retry_after_ms"] / 1000)

    def _wait_for(self, kind: type[Any]) -> Any:
        while True:
            assert self._dealer.poll(WAIT_MS), f"no {kind.__name__} came"
            frames = transport.receive(self._dealer)
            assert frames is not None
            for message in codec.TO_CLIENT.unpack(frames).messages:
                assert not isinstance(message, m.Error), message
                if isinstance(message, kind):
                    return message


# --- rubbish ---------------------------------------------------------------------------------------------------------

REQUEST = m.Request(b"r" * 16, SERVICE, 20_000, m.IDEMPOTENT, 0, 0, 0, b"hello", b"", {"k": 1})
MESSAGES: list[m.Message] = [
    REQUEST,
    m.Cancel(b"r" * 16),
    m.Ping(1),
    m.Window(5),
    m.Query(1, "status"),
    m.Hello(b"u" * 16, 1, 1),
    m.Admin(1, "drain", {"node": "nobody"}),
]


def one_mutation(rng: random.Random) -> list[bytes]:
    """Take a valid envelope and change one thing about it."""
    header = bytearray(codec.pack([rng.choice(MESSAGES), REQUEST])[0][0])
    match rng.randrange(6):
        case 0:
            header[rng.randrange(len(header))] ^= 1 << rng.randrange(8)
        case 1:
            del header[rng.randrange(len(header)) :]
        case 2:
            header += rng.randbytes(rng.randrange(1, 9))
        case 3:
            at = rng.randrange(4, len(header))
            header[at:at] = rng.choice(
                [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1"]
            )
        case 4:
            return [bytes(header), *([b"frame"] * rng.randrange(1, 20))]
        case _:
            fields: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(REQUEST))
            wrong: list[Any] = [None, -1, 2**63, "\x00", b"", [], {"a": []}, 1.5, float("nan")]
            fields[rng.randrange(len(fields))] = rng.choice(wrong)
            return [codec.PREFIX + msgspec.msgpack.encode([fields])]
    return [bytes(header)]


def rubbish(rng: random.Random) -> list[bytes]:
    """Make something that was never an envelope."""
    match rng.randrange(5):
        case 0:
            return [rng.randbytes(rng.randrange(1, 400))]
        case 1:
            return [b"ZR\x02\x00\x90"]
        case 2:
            return [b"", b"MDPC01", b"echo", b"hello"]
        case 3:
            return [codec.PREFIX + b"\x91" * 5000]
        case _:
            return [codec.PREFIX + b"\xdc\xff\xff" + b"\x90" * 65_535]


def send_rubbish(network: Network, endpoint: str, seed: int) -> None:
    """Send all of it, over a new connection for every seven; every second connection has greeted."""
    rng = random.Random(seed)
    for number in range(0, ENVELOPES, 7):
        dealer = network.dial(endpoint)
        has_session = number % 2 == 0
        if has_session:
            say(dealer, m.Hello(rng.randbytes(16), 1, 1))
        for _ in range(7):
            frames = one_mutation(rng) if has_session else rubbish(rng)
            for index, frame in enumerate(frames):
                dealer.send(frame, zmq.SNDMORE if index + 1 < len(frames) else 0)
        dealer.close(200)


@pytest.mark.parametrize("port", ["clients", "workers"])
def test_rubbish_disturbs_nobody(network: Network, broker: Process, port: str) -> None:
    """3,000 hostile envelopes, half of them one mutation away from good ones; another client is served throughout."""
    process = psutil.Process(broker.pid)
    with Service(network, broker.endpoints["workers"]):
        honest = Honest(network, broker.endpoints["clients"])
        for _ in range(50):
            honest.ask()
        before = process.memory_info().rss
        attack = threading.Thread(target=send_rubbish, args=(network, broker.endpoints[port], 7))
        attack.start()
        served = 0
        while attack.is_alive():
            honest.ask()
            served += 1
        attack.join()
        seen = eventually(lambda: shown if (shown := honest.status()).counters["strikes"] > ENVELOPES // 3 else None)

    assert served > 10
    assert seen.counters["internal_errors"] == 0
    assert seen.counters["strikes"] <= ENVELOPES
    assert process.memory_info().rss - before < GROWTH_BYTES
    assert "Traceback" not in broker.output()


def push_names(network: Network, endpoint: str, over: threading.Event) -> None:
    """Be a node that offers 256 new models in each heartbeat, as often as is no flood, and now and then returns."""
    number = 0
    for who in range(40):
        dealer = network.dial(endpoint)
        say(dealer, m.Ready(who.to_bytes(16, "big"), "pusher", 1000, [], []))
        for _ in range(20):
            names = [m.ServiceOffer(f"{number}-{each}-".ljust(128, "x"), 2**32 - 1, "embed") for each in range(256)]
            say(dealer, m.Heartbeat(who + 2, number, 0, 2**62, "ready", services=names))
            number += 1
        if over.wait(0.05):
            break
        if who % 2:
            dealer.close(200)
    over.set()


def test_names_without_end_neither_fill_the_broker_nor_cost_others_their_answers(
    network: Network, broker: Process
) -> None:
    """A worker's key is enough to offer models: 200,000 of them, and the broker stays as it is."""
    process, over = psutil.Process(broker.pid), threading.Event()
    with Service(network, broker.endpoints["workers"]):
        honest = Honest(network, broker.endpoints["clients"])
        for _ in range(50):
            honest.ask()
        seen = honest.status()
        before = process.memory_info().rss
        attack = threading.Thread(target=push_names, args=(network, broker.endpoints["workers"], over))
        attack.start()
        try:
            slowest_s, grown = 0.0, 0
            while not over.is_set():
                began = time.monotonic()
                seen = honest.status()
                slowest_s = max(slowest_s, time.monotonic() - began)
                honest.ask()
                grown = max(grown, process.memory_info().rss - before)
        finally:
            over.set()
            attack.join()
        assert len(seen.services) > 200
        assert honest.status().counters["internal_errors"] == 0

    print(f"grown {grown >> 20} MiB, status within {slowest_s:.2f} s")
    assert grown < 32 << 20
    assert slowest_s < 5.0
    assert "Traceback" not in broker.output()


def test_an_oversize_frame_costs_its_sender_the_connection(network: Network, broker: Process) -> None:
    """Libzmq cuts it off; others notice nothing."""
    dealer = network.dial(broker.endpoints["clients"])
    monitor = dealer.get_monitor_socket(int(zmq.EVENT_DISCONNECTED))

    dealer.send(b"x" * (MAX_FRAME_BYTES + 1), copy=False)

    assert monitor.poll(WAIT_MS), "the connection still stands"
    with Service(network, broker.endpoints["workers"]):
        Honest(network, broker.endpoints["clients"]).ask()
    dealer.disable_monitor()
    monitor.close(0)


def test_a_session_closed_for_strikes_hears_why_and_then_nothing(network: Network, broker: Process) -> None:
    """And a new connection of the same process starts afresh."""
    dealer = network.dial(broker.endpoints["clients"])
    for _ in range(8):
        dealer.send(codec.PREFIX + b"\x91\x91\x63")
    codes: list[int] = []
    while 403 not in codes:
        assert dealer.poll(WAIT_MS)
        frames = transport.receive(dealer)
        assert frames is not None
        codes += [one.code for one in codec.TO_CLIENT.unpack(frames).messages if isinstance(one, m.Error)]

    say(dealer, m.Hello(b"u" * 16, 1, 1))
    fresh = network.dial(broker.endpoints["clients"])
    say(fresh, m.Hello(b"u" * 16, 1, 1))

    assert codes == [400] * 8 + [403]
    assert fresh.poll(WAIT_MS)
    assert not dealer.poll(300)
