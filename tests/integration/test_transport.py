"""The sockets: loopback or keys, envelopes whole, ports free."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import zmq

from zmqrt.protocol import addresses, transport
from zmqrt.protocol.errors import ConfigurationError
from zmqrt.protocol.timing import Timing

pytestmark = pytest.mark.integration
Context = zmq.Context[zmq.Socket[bytes]]


@pytest.fixture
def context() -> Iterator[Context]:
    """Give a context that keeps, and at the end closes, every socket made in it."""
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


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("tcp://127.0.0.1:7555", True),
        ("tcp://127.3.2.1:*", True),
        ("tcp://[::1]:7555", True),
        ("tcp://localhost:7555", True),
        ("ipc:///tmp/x", True),
        ("tcp://0.0.0.0:7555", False),
        ("tcp://*:7555", False),
        ("tcp://[::]:7555", False),
        ("tcp://gpu-1:7555", False),
        ("tcp://localhost.example.com:7555", False),
        ("tcp://192.168.1.5:7555", False),
    ],
)
def test_off_loopback_needs_keys(endpoint: str, loopback: bool) -> None:  # noqa: FBT001
    """Without keys only this machine may be reached, unless overridden."""
    assert addresses.is_loopback(endpoint) is loopback
    transport.check_exposure(endpoint, has_keys=True, insecure=False)
    transport.check_exposure(endpoint, has_keys=False, insecure=True)
    if loopback:
        transport.check_exposure(endpoint, has_keys=False, insecure=False)
    else:
        with pytest.raises(ConfigurationError, match="zmqrt keygen"):
            transport.check_exposure(endpoint, has_keys=False, insecure=False)


@pytest.mark.parametrize(
    "endpoint",
    ["7555", "tcp://", "tcp://127.0.0.1", "tcp://:7555", "tcp://127.0.0.1:", "tcp://127.0.0.1:99999", "ipc://"],
)
def test_what_is_no_endpoint_is_called_so(endpoint: str) -> None:
    """Not an exposed one; and libzmq would bind port 99999 & 65535 without a word."""
    with pytest.raises(ConfigurationError, match="is not an endpoint"):
        transport.check_exposure(endpoint, has_keys=True, insecure=True)


def pair(context: Context) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Join a router and a dealer on a free port."""
    router, endpoint = transport.bind_backend(context, "tcp://127.0.0.1:0", timing=Timing())
    dealer = transport.make_dealer(context)
    transport.connect(dealer, endpoint)
    assert dealer.poll(5000, zmq.POLLOUT)
    return router, dealer


def test_an_envelope_arrives_whole_both_ways(context: Context) -> None:
    """Small and large frames, there and back."""
    router, dealer = pair(context)
    sent = [b"head", b"x" * 100_000, b""]

    transport.send(dealer, sent)
    assert router.poll(5000)
    received = transport.receive_routed(router)

    assert received is not None
    peer, user, fd, frames = received
    assert fd > 0
    assert (user, [bytes(f) for f in frames]) == ("", sent)
    assert transport.receive_routed(router) is None
    transport.send_routed(router, peer, sent)
    assert dealer.poll(5000)
    answer = transport.receive(dealer)
    assert answer is not None
    assert [bytes(f) for f in answer] == sent


def test_too_many_frames_do_not_shift_the_next_message(context: Context) -> None:
    """The surplus is read and dropped; one frame too many is kept, so that the codec refuses the envelope."""
    router, dealer = pair(context)

    dealer.send_multipart([b"a"] * 50)
    dealer.send(b"next")
    assert router.poll(5000)
    first = transport.receive_routed(router)
    assert router.poll(5000)
    second = transport.receive_routed(router)

    assert first is not None
    assert second is not None
    assert len(first[3]) == 10
    assert [bytes(f) for f in second[3]] == [b"next"]


def test_a_peer_of_an_old_zmtp_does_not_shift_the_next_message(context: Context) -> None:
    """Of such a connection libzmq does not tell the descriptor: that must not end the reading in mid-envelope."""
    router, endpoint = transport.bind_frontend(context, "tcp://127.0.0.1:0")
    host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"\x01\x00" + b"\x06\x00hello" + b"\x06\x00again")  # ZMTP 1: no name, and two messages
        for expected in (b"hello", b"again"):
            assert router.poll(5000)
            received = transport.receive_routed(router)
            assert received is not None
            _, _, fd, frames = received
            assert (fd, [bytes(frame) for frame in frames]) == (-1, [expected])


def test_a_send_to_nobody_is_seen(context: Context) -> None:
    """A dealer without a connection raises at once; so does a router for a peer it does not know."""
    dealer = transport.make_dealer(context)
    transport.connect(dealer, "tcp://127.0.0.1:1")
    router, _ = transport.bind_frontend(context, "tcp://127.0.0.1:0")

    with pytest.raises(zmq.Again):
        transport.send(dealer, [b"x"])
    with pytest.raises(zmq.ZMQError) as caught:
        transport.send_routed(router, b"nobody", [b"x"])
    assert caught.value.errno == zmq.EHOSTUNREACH


def test_a_busy_port_and_a_bad_endpoint_are_named(context: Context) -> None:
    """Each error says the endpoint."""
    _, endpoint = transport.bind_frontend(context, "tcp://127.0.0.1:0")

    with pytest.raises(OSError, match="in use"):
        transport.bind_frontend(context, endpoint)
    with pytest.raises(ConfigurationError, match="nonsense"):
        transport.bind_frontend(context, "nonsense")
    with pytest.raises(ConfigurationError, match="not an endpoint"):
        transport.connect(transport.make_dealer(context), "tcp://")


def test_a_wake_pair_wakes(context: Context) -> None:
    """What another thread sends, the poller sees."""
    poller_end, other_end = transport.wake_pair(context, "wake-test")

    other_end.send(b"")

    assert poller_end.poll(5000)
