"""A broker and peers that misuse ZMTP itself, below what any envelope can say: it lives, stays small, serves others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator

import psutil
import pytest

from support import raw_zmtp
from support.raw_zmtp import RawPeer
from support.stack import Stack, eventually, running
from zmqrt.client import Client
from zmqrt.protocol import codec
from zmqrt.protocol import messages as m
from zmqrt.protocol.limits import MAX_FRAME_BYTES
from zmqrt.worker.engines.mock_tokens import expected_tokens

pytestmark = pytest.mark.integration
MOST_GROWTH = 48 << 20
OFFERED = 1536 << 20
"""Several times what a fast sender gets rid of before it is cut off."""
HELLO = raw_zmtp.frame(codec.pack([m.Hello(b"u" * 16, 1, 1)])[0][0])
GREETING = raw_zmtp.greeting()
PORTS = ("clients", "workers")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Run a broker that evicts soon, so that it also asks its workers' connections often, and a node."""
    with running(broker=("--heartbeat-interval", "0.4", "--node-eviction-timeout", "0.8")) as made:
        yield made


@contextlib.contextmanager
def unharmed(stack: Stack, most_growth: int = MOST_GROWTH) -> Generator[Callable[[], None], None, None]:
    """Give a way to ask as an honest client would; at the end see that the broker is as well as before."""
    process = psutil.Process(stack.processes[0].pid)
    with stack.client(name="honest", timeout_s=20) as client:
        for _ in range(10):
            ask(client)
        before = process.memory_info().rss
        errors = client.status().counters["internal_errors"]

        yield lambda: ask(client)

        ask(client)
        assert process.is_running()
        assert process.memory_info().rss - before < most_growth
        assert client.status().counters["internal_errors"] == errors


def ask(client: Client) -> None:
    """Ask something whose answer is known."""
    result = client.infer(token_ids=[1, 2, 3], max_tokens=5, seed=7, temperature=0.7, ignore_eos=True, model="mock")
    assert result.token_ids == expected_tokens([1, 2, 3], 5, seed=7, temperature=0.7, ignore_eos=True)


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n" + bytes(64), id="http"),
        pytest.param(raw_zmtp.greeting(signature=b"\xff" + bytes(9)), id="signature"),
        pytest.param(raw_zmtp.greeting(mechanism=b"PLAIN"), id="mechanism"),
        pytest.param(raw_zmtp.greeting(mechanism=b"\xff" * 20), id="no-mechanism"),
        pytest.param(GREETING + raw_zmtp.ready(b"PUB"), id="socket-type"),
        pytest.param(GREETING + raw_zmtp.frame(b"early"), id="message-before-ready"),
        pytest.param(GREETING + raw_zmtp.header(8, is_command=True) + b"\x05READY\xff\xff", id="metadata"),
        pytest.param(GREETING + raw_zmtp.header(1 << 40, is_command=True), id="ready-without-end"),
    ],
)
def test_a_handshake_that_is_none_is_hung_up_on(stack: Stack, port: str, said: bytes) -> None:
    """At once, not when its time is up."""
    with unharmed(stack), RawPeer(stack.processes[0].endpoints[port]) as peer:
        assert peer.send(said).is_cut()


def test_a_frame_is_not_believed_to_be_as_large_as_it_says(stack: Stack) -> None:
    """Over the limit, it ends the connection before any of it is read; below, memory is used for what has come."""
    with unharmed(stack) as ask_again, contextlib.ExitStack() as held:
        for size in (MAX_FRAME_BYTES + 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
            with RawPeer(stack.clients) as peer:
                assert peer.handshake().send(raw_zmtp.header(size) + bytes(100)).is_cut()
        for _ in range(100):
            peer = held.enter_context(RawPeer(stack.clients))
            peer.handshake().send(raw_zmtp.header(MAX_FRAME_BYTES) + bytes(1000))
        ask_again()


@pytest.mark.parametrize("size", [1 << 20, 3000])
def test_a_message_without_end_is_cut(stack: Stack, size: int) -> None:
    """Frame after frame, each below the limit and none the last: what one envelope may hold is as far as it gets."""
    some = raw_zmtp.frame(bytes(size), more=True) * max(1, (1 << 20) // size)
    before = stack.status().counters["endless_envelopes"]
    with unharmed(stack, OFFERED // 2) as ask_again, RawPeer(stack.clients) as peer:
        peer.handshake()
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < OFFERED:
                peer.send(some)
                sent += len(some)
        ask_again()

        assert sent < OFFERED
        assert stack.status().counters["endless_envelopes"] > before


def test_the_second_of_two_with_one_routing_id_gets_nothing(stack: Stack) -> None:
    """A name cannot be taken over: who came first is served on, and what the other says is not heard."""
    with unharmed(stack), RawPeer(stack.clients) as first, RawPeer(stack.clients) as second:
        first.handshake(b"one name").send(HELLO)
        assert isinstance(heard(first), m.Welcome)
        second.handshake(b"one name").send(HELLO)

        for nonce in range(3):
            first.send(raw_zmtp.frame(codec.pack([m.Ping(nonce)])[0][0]))
            assert getattr(heard(first), "nonce", None) == nonce
        second.socket.settimeout(0.3)
        with pytest.raises((TimeoutError, AssertionError)):
            heard(second)


def heard(peer: RawPeer) -> m.ToClient:
    """Read the next thing that the broker says."""
    (message,) = codec.TO_CLIENT.unpack(list(peer.read_message())).messages
    return message


@pytest.mark.slow
def test_half_a_handshake_is_not_waited_for_forever(stack: Stack) -> None:
    """A hundred that fall silent at every stage: each is hung up on in the end, and its descriptor is free again."""
    process = psutil.Process(stack.processes[0].pid)
    said = [b"", raw_zmtp.SIGNATURE[:5], raw_zmtp.SIGNATURE, GREETING[:40], GREETING]
    with unharmed(stack) as ask_again, contextlib.ExitStack() as held:
        before = process.num_fds()
        peers = [held.enter_context(RawPeer(stack.processes[0].endpoints[PORTS[n % 2]])) for n in range(100)]
        for number, peer in enumerate(peers):
            peer.send(said[number % len(said)])
        eventually(lambda: process.num_fds() >= before + 100, what="a hundred connections")
        ask_again()

        assert all(peer.is_cut(40) for peer in peers)
        eventually(lambda: process.num_fds() <= before + 5, what="the end of their descriptors")


@pytest.mark.slow
def test_who_answers_no_heartbeat_of_zmtp_is_hung_up_on(stack: Stack) -> None:
    """A connection behind which nobody lives: on both ports, also when it has registered."""
    with unharmed(stack) as ask_again, contextlib.ExitStack() as held:
        peers = [
            held.enter_context(RawPeer(stack.processes[0].endpoints[port])).handshake() for port in PORTS for _ in "12"
        ]
        peers[0].send(HELLO)
        peers[2].send(raw_zmtp.frame(codec.pack([m.Ready(b"w" * 16, "mute", 1, [], [])])[0][0]))
        ask_again()

        assert all(peer.is_cut(40) for peer in peers)
