"""The fault proxy: what it does to plain sockets, fault by fault."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Self

import pytest
from chaos.proxy import FaultProxy, Way

from support.stack import eventually
from zmqrt.protocol.errors import ConfigurationError

pytestmark = pytest.mark.integration
WAIT_S = 20.0
QUIET_S = 0.2
"""How long nothing must come where nothing may."""
LARGE = 8 << 20


class Pair:
    """The two ends of one connection through a proxy."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WAIT_S)
        self.proxy = FaultProxy(f"tcp://127.0.0.1:{self._listener.getsockname()[1]}")
        self._sockets = [self._listener]

    def dial(self) -> socket.socket:
        """Connect to the proxy."""
        self._sockets.append(dial(self.proxy))
        return self._sockets[-1]

    def accept(self) -> socket.socket:
        """Take what the proxy connects to the target."""
        self._sockets.append(self._listener.accept()[0])
        self._sockets[-1].settimeout(WAIT_S)
        return self._sockets[-1]

    def __enter__(self) -> Self:
        self.proxy.__enter__()
        self.client = self.dial()
        self.target = self.accept()
        eventually(lambda: self.proxy.connections == 1)
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            one.close()
        self.proxy.__exit__(None, None, None)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give a connection through a proxy."""
    with Pair() as made:
        yield made


def dial(proxy: FaultProxy) -> socket.socket:
    """Connect to a proxy."""
    host, port = proxy.endpoint.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def read(end: socket.socket, count: int) -> bytes:
    """Read so many bytes."""
    got = bytearray()
    while len(got) < count:
        more = end.recv(count - len(got))
        assert more, f"closed after {len(got)} of {count} bytes"
        got += more
    return bytes(got)


def is_silent(end: socket.socket) -> bool:
    """Say whether nothing comes for a while: no byte and no end."""
    end.settimeout(QUIET_S)
    try:
        end.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        end.settimeout(WAIT_S)
    return False


def was_reset(end: socket.socket) -> bool:
    """Say whether the connection has ended by RST, not by FIN."""
    try:
        end.recv(1)
    except ConnectionResetError:
        return True
    return False


def is_refused(proxy: FaultProxy) -> bool:
    """Say whether a new connection is reset; the reset may even come before the caller knows that it stands."""
    try:
        with dial(proxy) as client:
            return was_reset(client)
    except ConnectionResetError:
        return True


def data_segments(end: socket.socket) -> int:
    """Ask the kernel (tcp_info.tcpi_data_segs_in) how many segments with data a socket has received."""
    (count,) = struct.unpack_from("I", end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160), 152)
    return int(count)


def test_bytes_pass_both_ways_unchanged(pair: Pair) -> None:
    """More of them than any buffer on the way holds, both ways at once; FIN passes as well."""
    sent = {end: random.Random(seed).randbytes(LARGE) for seed, end in enumerate((pair.client, pair.target))}
    got: dict[socket.socket, bytes] = {}

    def receive(end: socket.socket) -> None:
        got[end] = read(end, LARGE)

    senders = [threading.Thread(target=end.sendall, args=(data,)) for end, data in sent.items()]
    readers = [threading.Thread(target=receive, args=(end,)) for end in sent]
    for thread in (*senders, *readers):
        thread.start()
    for thread in (*senders, *readers):
        thread.join(WAIT_S)
    pair.client.shutdown(socket.SHUT_WR)

    assert hashlib.sha256(got[pair.target]).digest() == hashlib.sha256(sent[pair.client]).digest()
    assert hashlib.sha256(got[pair.client]).digest() == hashlib.sha256(sent[pair.target]).digest()
    assert pair.target.recv(1) == b""
    eventually(lambda: pair.proxy.passed_bytes == {"to_target": LARGE, "to_client": LARGE}, what="the right count")
    pair.target.sendall(b"still open")
    assert read(pair.client, 10) == b"still open"


def test_frozen_nothing_passes_and_thawed_everything_does(pair: Pair) -> None:
    """Connections stay, a new one gets no answer, and what was sent meanwhile comes in its order."""
    pair.proxy.freeze()
    pair.client.sendall(b"one")
    pair.target.sendall(b"two")
    second = pair.dial()
    second.sendall(b"three")
    pair.client.sendall(b"four")
    assert is_silent(pair.client)
    assert is_silent(pair.target)
    assert is_silent(second)

    pair.proxy.thaw()

    assert read(pair.target, 7) == b"onefour"
    assert read(pair.client, 3) == b"two"
    assert read(pair.accept(), 5) == b"three"


def test_a_frozen_proxy_takes_no_more_than_the_kernel_holds(pair: Pair) -> None:
    """A sender is stopped by back-pressure, and what it had sent arrives complete."""
    pair.proxy.freeze()
    pair.client.settimeout(QUIET_S)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while taken < 64 * LARGE:
            taken += pair.client.send(bytes(LARGE))
    assert 0 < taken < 64 * LARGE

    pair.proxy.thaw()

    assert read(pair.target, taken) == bytes(taken)


def test_a_reset_is_seen_on_both_sides(pair: Pair) -> None:
    """And the next connection is served again."""
    pair.client.sendall(b"x")
    read(pair.target, 1)

    pair.proxy.reset()

    assert was_reset(pair.client)
    assert was_reset(pair.target)
    assert pair.proxy.connections == 0
    pair.dial().sendall(b"again")
    assert read(pair.accept(), 5) == b"again"


def test_a_frozen_connection_can_be_reset(pair: Pair) -> None:
    """A partition that ends with a broken connection instead of a delivery."""
    pair.proxy.freeze()
    pair.client.sendall(b"lost")

    pair.proxy.reset()

    assert was_reset(pair.target)


def test_a_reset_of_one_side_reaches_the_other(pair: Pair) -> None:
    """As it would without a proxy."""
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    pair.client.close()

    assert was_reset(pair.target)


def test_refusing_resets_new_connections_alone(pair: Pair) -> None:
    """What stands goes on; afterwards there are new ones again."""
    pair.proxy.refuse(True)
    assert is_refused(pair.proxy)
    pair.client.sendall(b"x")
    assert read(pair.target, 1) == b"x"

    pair.proxy.refuse(False)

    pair.dial().sendall(b"again")
    assert read(pair.accept(), 5) == b"again"


def test_a_target_that_is_not_there_is_a_reset() -> None:
    """Nobody listens: the client hears so, and the proxy goes on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with FaultProxy(f"tcp://127.0.0.1:{port}") as proxy:
        assert is_refused(proxy)
        assert is_refused(proxy)


@pytest.mark.parametrize("way", ["to_target", "to_client"])
def test_one_way_can_be_closed(pair: Pair, way: Way) -> None:
    """One side sees the end, the other direction goes on."""
    told, other = (pair.target, pair.client) if way == "to_target" else (pair.client, pair.target)

    pair.proxy.close_one_way(way)

    assert told.recv(1) == b""
    other.sendall(b"into the void")
    told.sendall(b"heard")
    assert read(other, 5) == b"heard"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel how many segments came")
def test_pieces_are_no_larger_than_asked(pair: Pair) -> None:
    """Three hundred bytes, three at a time, are many segments; a busy kernel joins some of them again."""
    pair.proxy.split_bytes = 3
    pair.client.sendall(bytes(300))

    assert read(pair.target, 300) == bytes(300)
    assert data_segments(pair.target) > 10


def test_bytes_are_late_and_slow_as_asked(pair: Pair) -> None:
    """Never sooner than the delay and the rate say; how much later is up to the machine."""
    pair.proxy.delay_s = 0.1
    begin = time.monotonic()
    pair.client.sendall(b"x")
    read(pair.target, 1)
    delayed_s = time.monotonic() - begin
    pair.proxy.delay_s = 0
    pair.proxy.bytes_per_s = 1_000_000
    begin = time.monotonic()
    pair.client.sendall(bytes(300_000))
    read(pair.target, 300_000)
    throttled_s = time.monotonic() - begin

    assert delayed_s >= 0.1
    assert throttled_s >= 0.25


def test_twenty_proxies_are_twenty_sleeping_threads() -> None:
    """Opened and closed, they leave no thread behind; idle, they use no processor."""
    pairs = [Pair().__enter__() for _ in range(20)]
    begin, used_s = time.monotonic(), time.process_time()
    eventually(lambda: time.monotonic() - begin > 1)
    used_s = time.process_time() - used_s
    for one in pairs:
        one.__exit__()

    assert used_s < 0.5
    assert not [thread for thread in threading.enumerate() if thread.name == "fault-proxy"]


@pytest.mark.parametrize("endpoint", ["ipc:///tmp/x", "tcp://127.0.0.1", "7555"])
def test_what_is_no_tcp_endpoint_is_refused(endpoint: str) -> None:
    """Before anything listens."""
    with pytest.raises(ConfigurationError, match=r"endpoint|TCP"):
        FaultProxy(endpoint)
