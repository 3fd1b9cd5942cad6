"""A running broker and peers that mean harm: three thousand bad inputs into both ports, while others are served.

A bad input is either a valid envelope of a greeted session with one thing wrong in it, or garbage of many kinds.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import pytest
import zmq

from support.stack import Stack, eventually, running
from support.wire import smallest
from zmqrt.protocol import codec, limits, tasks
from zmqrt.protocol import messages as m
from zmqrt.protocol.snapshot import Snapshot
from zmqrt.worker.engines.mock_tokens import expected_tokens

pytestmark = pytest.mark.e2e
INPUTS: Final = 3000
PER_CONNECTION: Final = limits.MAX_STRIKES - 1
FEWEST_STRIKES: Final = INPUTS // 3
MOST_GROWTH: Final = 64 << 20
FEW_SESSIONS: Final = 20
"""Of a hundred: libzmq's hint that a connection broke may come before its HELLO is read; then a minute passes."""
HALF_GREETING: Final = b"\xff" + bytes(8) + b"\x7f"
GREETING: Final = HALF_GREETING + b"\x03\x01NULL" + bytes(16 + 1 + 31)
HANDSHAKE: Final = GREETING + b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
Frames = list[bytes]


# --- valid envelopes, and what can be wrong with one -----------------------------------------------------------------


def ask(rng: random.Random) -> m.Request:
    """Build a REQUEST that a node would answer."""
    body = tasks.encode(tasks.Generate(token_ids=[1, 2, 3], max_tokens=4))
    flags = rng.choice([m.IDEMPOTENT, m.IDEMPOTENT | m.STREAM | m.RESUMABLE])
    return m.Request(rng.randbytes(16), "mock", 5000, flags, 0, 0, 0, body)


def from_client(rng: random.Random) -> m.FromClient:
    """Build anything that a client says."""
    kinds = [m.Hello, m.Cancel, m.Ping, m.Query, m.Window, m.Admin]
    made: m.FromClient = rng.choice([ask(rng), ask(rng), ask(rng), smallest(rng.choice(kinds))])
    return made


def from_worker(rng: random.Random, epoch: int) -> m.FromWorker:
    """Build anything that a worker says once it is registered."""
    kinds = [m.Heartbeat, m.WorkerPartial, m.WorkerFinal, m.WorkerError, m.Credit]
    made: m.FromWorker = msgspec.structs.replace(smallest(rng.choice(kinds)), epoch=epoch)
    return made


def large(rng: random.Random) -> Frames:
    """Build an envelope with two bodies in frames of their own."""
    bodies = [msgspec.structs.replace(ask(rng), body=bytes(limits.INLINE_BODY_BYTES)) for _ in range(2)]
    (frames,) = codec.pack(bodies)
    return frames


def fields_of(frames: Frames) -> list[list[Any]]:
    """Take a header apart."""
    batch: list[list[Any]] = msgspec.msgpack.decode(frames[0][4:])
    return batch


def with_fields(batch: Any) -> Frames:
    """Put a header together."""
    return [codec.PREFIX + msgspec.msgpack.encode(batch)]


def change_byte(rng: random.Random, frames: Frames) -> Frames:
    """Change one byte of the header."""
    header = bytearray(frames[0])
    header[rng.randrange(len(header))] = rng.randrange(256)
    return [bytes(header), *frames[1:]]


def cut(rng: random.Random, frames: Frames) -> Frames:
    """Lose the end of the header."""
    return [frames[0][: rng.randrange(1, len(frames[0]))], *frames[1:]]


def insert(rng: random.Random, frames: Frames) -> Frames:
    """Put bytes into the header."""
    at = rng.randrange(len(frames[0]) + 1)
    return [frames[0][:at] + rng.randbytes(rng.randrange(1, 9)) + frames[0][at:], *frames[1:]]


def other_type(rng: random.Random, frames: Frames) -> Frames:
    """Give one field another type, or a number out of range."""
    batch = fields_of(frames)
    values: list[Any] = [
        None,
        True,
        -1,
        2**63,
        1.5,
        float("nan"),
        "text",
        b"x" * 15,
        [],
        {},
        [[[]]],
        {1: 2},
        "x" * 2000,
    ]
    message = rng.choice(batch)
    message[rng.randrange(len(message))] = rng.choice(values)
    return with_fields(batch) + frames[1:]


def frame_added(rng: random.Random, frames: Frames) -> Frames:
    """Add frames that no message names."""
    return [*frames, *[rng.randbytes(9)] * rng.choice([1, 2, 8, 9])]


def frame_removed(rng: random.Random, _: Frames) -> Frames:
    """Leave a body out."""
    return large(rng)[:-1]


def wrong_number(rng: random.Random, _: Frames) -> Frames:
    """Name a frame twice, not at all, or out of order."""
    frames = large(rng)
    batch = fields_of(frames)
    batch[rng.randrange(2)][8] = rng.choice([0, 1, 2, 3, 9, 2**40, -1])
    return with_fields(batch) + frames[1:]


def other_major(rng: random.Random, frames: Frames) -> Frames:
    """Speak another version."""
    return [b"ZR" + bytes([rng.choice([0, 2, 255]), 0]) + frames[0][4:], *frames[1:]]


def wrong_magic(rng: random.Random, frames: Frames) -> Frames:
    """Speak something else, MDP for one."""
    return [rng.choice([b"MDPC02", b"MDPW02", b"zr\x01\x00", b"Z"]) + frames[0][4:], *frames[1:]]


def unknown_command(rng: random.Random, frames: Frames) -> Frames:
    """Add a message that there is not, beside the good one."""
    number = rng.choice([0, 9, 32, 42, 128, 255, 2**31, -1, 2**64 - 1])
    return with_fields([*fields_of(frames), [number, rng.randbytes(16)]]) + frames[1:]


def other_role(rng: random.Random, _: Frames) -> Frames:
    """Say what only a broker says."""
    kinds = [*m.ToClient.__args__, *m.ToWorker.__args__]
    (frames,) = codec.pack([smallest(rng.choice(kinds))])
    return frames


def oversize(rng: random.Random, frames: Frames) -> Frames:
    """Send a header, or a number of messages, over the limit."""
    batch = fields_of(frames)
    return rng.choice([[frames[0] + bytes(limits.MAX_HEADER_BYTES)], with_fields(batch * (limits.MAX_MESSAGES + 1))])


def bomb(rng: random.Random, _: Frames) -> Frames:
    """Claim, in a few bytes, what would take gigabytes or a deep stack to build."""
    bombs = [
        b"\xdd\xff\xff\xff\xff",
        b"\x91\xdf\xff\xff\xff\xff",
        b"\x91\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x91\x93\x01\xdb\xff\xff\xff\xff",
        b"\xdc\x04\x00" + b"\x90" * 1024,
        b"\x91\x92\x05" + b"\x81\xa1a" * 20_000 + b"\xc0",
        b"\x91\xc7\x05\x01hello",
        b"\xc1",
    ]
    return [codec.PREFIX + rng.choice(bombs)]


MUTATIONS: Final[list[Callable[[random.Random, Frames], Frames]]] = [
    change_byte,
    cut,
    insert,
    other_type,
    other_type,
    frame_added,
    frame_removed,
    wrong_number,
    other_major,
    wrong_magic,
    unknown_command,
    other_role,
    bomb,
]


def mutated(rng: random.Random, message: m.FromClient | m.FromWorker) -> Frames:
    """Make one thing of a valid envelope wrong."""
    (frames,) = codec.pack([message])
    mutation = oversize if rng.random() < 0.02 else rng.choice(MUTATIONS)  # these weigh a megabyte each
    return mutation(rng, frames)


def garbage(rng: random.Random) -> Frames:
    """Build an envelope of nothing."""
    kinds: list[Callable[[], Frames]] = [
        lambda: [rng.randbytes(rng.randrange(1, 300))],
        lambda: [codec.PREFIX + rng.randbytes(rng.randrange(300))],
        lambda: [b""],
        lambda: [b"", b"", b"MDPC01", b"mock", b"hi"],
        lambda: [rng.randbytes(5)] * 50,
        lambda: [codec.PREFIX + b"\x90"],
        lambda: [codec.PREFIX],
        lambda: [b""] * rng.randrange(2, 2000),
        lambda: [b"GET /status HTTP/1.1\r\nHost: broker\r\n\r\n"],
        lambda: [codec.PREFIX + b"\xdd" + rng.randbytes(4)],
    ]
    return rng.choice(kinds)()


def not_zmtp(rng: random.Random) -> bytes:
    """Build what a raw TCP connection may say."""
    claim = (rng.choice([2**63 - 1, 2**40, limits.MAX_FRAME_BYTES + 1])).to_bytes(8, "big")
    return rng.choice(
        [
            rng.randbytes(rng.randrange(1, 2000)),
            b"POST /infer HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n{}",
            HALF_GREETING[: rng.randrange(1, len(HALF_GREETING))],
            GREETING,
            GREETING + rng.randbytes(200),
            HANDSHAKE + rng.randbytes(500),
            HANDSHAKE + b"\x02" + claim + bytes(100),
            HANDSHAKE + b"\x01\x01x" * 20_000,  # frames without end, up to a bound
            HANDSHAKE + b"\x04\xff",
        ]
    )


# --- who sends it ----------------------------------------------------------------------------------------------------


class Attacker:
    """Raw sockets of the two ports."""

    def __init__(self, stack: Stack, rng: random.Random) -> None:
        self._stack = stack
        self._rng = rng
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self.sent = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(0)

    @contextlib.contextmanager
    def _dealer(self, endpoint: str) -> Generator[zmq.Socket[bytes], None, None]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 5000)
        dealer.setsockopt(zmq.SNDTIMEO, 5000)
        dealer.setsockopt(zmq.RECONNECT_IVL, -1)
        dealer.connect(endpoint)
        try:
            yield dealer
        finally:
            dealer.close()

    def as_client(self) -> None:
        """Say HELLO, then what is nearly right."""
        with self._dealer(self._stack.clients) as dealer:
            dealer.send_multipart(codec.pack([m.Hello(self._rng.randbytes(16), 1, 1)])[0])
            for _ in range(PER_CONNECTION):
                self._send(dealer, mutated(self._rng, from_client(self._rng)))

    def as_worker(self) -> None:
        """Say READY, wait for the epoch, then what is nearly right."""
        offer = m.ServiceOffer("evil", 4, "generate")
        with self._dealer(self._stack.workers) as dealer:
            dealer.send_multipart(codec.pack([m.Ready(self._rng.randbytes(16), "evil", 4, [offer], [])])[0])
            assert dealer.poll(5000), "a READY was not answered"
            welcome, *_ = codec.TO_WORKER.unpack(dealer.recv_multipart()).messages
            assert isinstance(welcome, m.WorkerWelcome)
            for _ in range(PER_CONNECTION):
                self._send(dealer, mutated(self._rng, from_worker(self._rng, welcome.epoch)))

    def as_nobody(self) -> None:
        """Send nonsense to either port."""
        with self._dealer(self._rng.choice([self._stack.clients, self._stack.workers])) as dealer:
            for _ in range(PER_CONNECTION):
                self._send(dealer, garbage(self._rng))

    def without_zmtp(self) -> None:
        """Open plain TCP connections."""
        for _ in range(PER_CONNECTION):
            with open_tcp(self._rng.choice([self._stack.clients, self._stack.workers])) as raw:
                with contextlib.suppress(ConnectionError):  # cut off in the middle: just so
                    raw.sendall(not_zmtp(self._rng))
                self.sent += 1

    def _send(self, dealer: zmq.Socket[bytes], frames: Frames) -> None:
        with contextlib.suppress(zmq.Again):  # cut off for a frame over the limit
            dealer.send_multipart(frames)
        self.sent += 1


def open_tcp(endpoint: str) -> socket.socket:
    """Connect to an endpoint without ZeroMQ."""
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=5)


class Customer(threading.Thread):
    """An honest client: asks all the time, and knows the answers."""

    def __init__(self, stack: Stack, seed: int) -> None:
        super().__init__(daemon=True)
        self._stack = stack
        self._rng = random.Random(seed)
        self._is_over = threading.Event()
        self.answers = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Ask until told to stop."""
        try:
            with self._stack.client(name="honest", timeout_s=20) as client:
                while not self._is_over.is_set():
                    prompt = [self._rng.randrange(256) for _ in range(self._rng.randrange(1, 40))]
                    options: Any = {"max_tokens": 20, "seed": self._rng.randrange(2**60), "temperature": 0.7}
                    result = client.infer(token_ids=prompt, model="mock", ignore_eos=True, **options)
                    assert result.token_ids == expected_tokens(
                        prompt, 20, seed=options["seed"], temperature=0.7, ignore_eos=True
                    )
                    self.answers += 1
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it again
            self.failure = error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self.join(30)

    def check(self, at_least: int) -> None:
        """Raise what went wrong, and see that there were answers."""
        if self.failure is not None:
            raise self.failure
        assert self.answers >= at_least


def resident_bytes(pid: int) -> int:
    """Read how much memory a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def calm(stack: Stack) -> Snapshot | None:
    """Return the broker's state once nothing of the attack is left in it."""
    seen = stack.status()
    assert [node.node_id for node in seen.nodes] == ["node-0"], seen.nodes
    assert seen.clients <= FEW_SESSIONS, f"{seen.clients} sessions are left"
    assert (seen.queued, seen.running) == (0, 0)
    return seen


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")  # noqa: PTH110
@pytest.mark.parametrize("seed", [20_250_601, pytest.param(None, marks=pytest.mark.slow)], ids=["known", "fresh"])
def test_three_thousand_hostile_inputs_harm_nobody(seed: int | None) -> None:
    """The broker lives, has no error of its own, counts them, forgets them, and serves the others meanwhile."""
    seed = secrets.randbits(32) if seed is None else seed
    print(f"seed {seed}")
    rng = random.Random(seed)
    with running() as stack:
        broker = stack.processes[0]
        with Customer(stack, seed) as customer:
            eventually(lambda: customer.answers >= 20 or customer.failure, what="the first answers")
            before = resident_bytes(broker.pid)
            with Attacker(stack, rng) as attacker:
                attacks = [attacker.as_client, attacker.as_worker, attacker.as_nobody, attacker.without_zmtp]
                while attacker.sent < INPUTS:
                    rng.choice(attacks)()
                seen = eventually(
                    lambda: s if (s := stack.status()).counters["strikes"] >= FEWEST_STRIKES else None, what="strikes"
                )
                print({name: count for name, count in seen.counters.items() if count})
            answers = customer.answers
            eventually(lambda: customer.answers >= answers + 20 or customer.failure, what="answers afterwards")
        customer.check(40)
        seen = eventually(lambda: calm(stack), what="the end of what the attack left")
        growth = resident_bytes(broker.pid) - before
        print(f"{customer.answers} answers, {growth >> 20} MiB more, {seen.counters['strikes']} strikes")

        assert broker.popen.poll() is None
        assert seen.counters["internal_errors"] == 0, broker.output()
        assert growth < MOST_GROWTH
        assert not [line for line in broker.lines if "Traceback" in line]
        (service,) = [one for one in seen.services if one.service == "mock"]
        assert (service.nodes, service.queued, service.running) == (1, 0, 0)
        assert seen.ready


def test_two_hundred_half_handshakes_keep_nobody_waiting() -> None:
    """Connections that begin a handshake and fall silent cost a descriptor each, and no more."""
    with running() as stack, contextlib.ExitStack() as held:
        for number in range(200):
            raw = held.enter_context(open_tcp(stack.clients if number % 2 else stack.workers))
            raw.sendall([b"", HALF_GREETING[:5], HALF_GREETING, GREETING][number % 4])
        with Customer(stack, 1) as customer:
            eventually(lambda: customer.answers >= 50 or customer.failure, what="fifty answers")
        customer.check(50)
        seen = stack.status()

    assert seen.counters["internal_errors"] == 0
    assert [node.node_id for node in seen.nodes] == ["node-0"]
