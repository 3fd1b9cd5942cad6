"""Bounds of the bridge against raw peers: its memory stays, and another caller is served meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import resource
import socket
import statistics
import threading
import time
from collections.abc import Generator, Iterator

import psutil
import pytest

from support.http import address_of
from support.memory import Memory
from support.served import connect, read_all, say, statuses
from support.stack import Process, Stack, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
MAX_GROWTH_BYTES = 32 << 20
MAX_WAIT_S = 1.0
"""Of most probes, from a second connection: kubelet waits so long. One alone may meet a machine that is busy."""
LIVEZ = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n"


@pytest.fixture(scope="module")
def bridge() -> Generator[Process]:
    """A bridge with short clocks and a fleet, warm."""
    clocks = (
        "--head-timeout",
        "1500ms",
        "--body-timeout",
        "1500ms",
        "--write-timeout",
        "1s",
        "--keep-alive-timeout",
        "3s",
    )
    with running(worker=("--engine", "mock")) as stack:
        process = stack.bridge(*clocks, "--api-keys", "acme:s3cret", "--log-level", "warning")
        for _ in range(50):
            probe(process)
        yield process


def probe(bridge: Process) -> float:
    """Ask for /livez on a new connection; return how long that took."""
    began_at = time.monotonic()
    connection = http.client.HTTPConnection(*address_of(bridge), timeout=20)
    try:
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
    finally:
        connection.close()
    return time.monotonic() - began_at


@contextlib.contextmanager
def steady(bridge: Process) -> Generator[None]:
    """Fail if the bridge grows, or if a probe has to wait, while what is inside runs."""
    is_over = threading.Event()
    waits: list[float] = []

    def watch() -> None:
        while True:
            waits.append(probe(bridge))
            if is_over.wait(0.05):
                return

    watching = threading.Thread(target=watch)
    with Memory(bridge.pid) as memory:
        watching.start()
        try:
            yield
        finally:
            is_over.set()
            watching.join()
    usual, longest = statistics.median(waits), max(waits)
    print(f"grew by {memory.growth / (1 << 20):.1f} MiB; /livez took {usual:.3f} s, {longest:.3f} s at most")
    assert memory.growth < MAX_GROWTH_BYTES
    assert usual < MAX_WAIT_S


def pour(bridge: Process, pieces: Iterator[bytes], *, most_bytes: int = 96 << 20, most_s: float = 6.0) -> bytes:
    """Send until the bridge closes, or enough; return what it said."""
    give_up_at = time.monotonic() + most_s
    with connect(address_of(bridge)) as caller:
        caller.settimeout(most_s + 10)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < most_bytes and time.monotonic() < give_up_at:
                piece = next(pieces)
                caller.sendall(piece)
                sent += len(piece)
        return read_all(caller)


MIB = b"x" * (1 << 20)
CHUNKED = LIVEZ + b"transfer-encoding: chunked\r\n\r\n"
ENDLESS = {
    "many headers": (LIVEZ, b"a: b\r\n" * 20_000, 431),
    "one header": (LIVEZ + b"a: ", MIB, 431),
    "one name of a header": (LIVEZ, MIB, 431),
    "a url": (b"GET /", MIB, 414),
    "a method": (b"G", b"G" * (1 << 20), 414),
    "empty lines": (b"\r\n", b"\r\n" * 50_000, None),
    "a body": (LIVEZ + b"content-length: 99999999999\r\n\r\n", MIB, 200),
    "a body that is refused": (
        LIVEZ.replace(b"GET /livez", b"POST /infer") + b"content-length: 9999999\r\n\r\n",
        MIB,
        401,
    ),
    "chunks": (CHUNKED, b"100000\r\n" + MIB + b"\r\n", 200),
    "small chunks": (CHUNKED, b"1\r\na\r\n" * 10_000, 200),
    "lines in a chunk": (CHUNKED, b"10000\r\n" + b"\n" * 0x10000 + b"\r\n", 200),
    "the name of a chunk": (CHUNKED + b"1;", MIB, 200),
    "trailers": (CHUNKED + b"0\r\n", b"authorization: Bearer s3cret\r\n" * 10_000, 200),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_makes_nothing_grow(bridge: Process, kind: str) -> None:
    """Without a key, as fast as loopback carries it; then the connection is closed."""
    first, again, status = ENDLESS[kind]
    with steady(bridge):
        said = pour(bridge, itertools.chain([first], itertools.repeat(again)))

    assert status is None or statuses(said)[:1] == [status]


def test_a_key_in_a_trailer_is_no_key(bridge: Process) -> None:
    """It comes when the request has been let in already, or not; nor is it the key of the next one."""
    body = b'{"prompt": "hi", "max_tokens": 1}'
    head = b"POST /infer HTTP/1.1\r\nhost: localhost\r\ntrailer: x-api-key\r\ntransfer-encoding: chunked\r\n%s\r\n"
    chunks = b"%x\r\n%s\r\n0\r\nx-api-key: s3cret\r\nauthorization: Bearer s3cret\r\n\r\n" % (len(body), body)
    said = say(address_of(bridge), head % b"", chunks, head % b"connection: close\r\n", chunks)

    assert statuses(said) == [401, 401]


def pipelined(method: str) -> bytes:
    """Write one of many requests in a row."""
    if method == "GET":
        return LIVEZ + b"\r\n"
    body = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()
    head = b"POST /infer HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer s3cret\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_in_a_row_to_a_reader_that_takes_nothing_wait_in_its_own_machine(bridge: Process, method: str) -> None:
    """And it is cut off when its answers pile up."""
    row = pipelined(method) * 1000
    with steady(bridge), connect(address_of(bridge)) as caller:
        caller.settimeout(3)
        with contextlib.suppress(OSError):
            for _ in range(60):
                caller.sendall(row)


def test_many_unfinished_requests_at_once_leave_room_for_others(bridge: Process) -> None:
    """Half heads and bodies that stop, some hundred of each; all are closed by their clocks."""
    kinds = (LIVEZ + b"a: " + b"x" * 10_000, LIVEZ + b"content-length: 100\r\n\r\nabc", b"")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(200, soft // 8)
    with contextlib.ExitStack() as stack, steady(bridge):
        callers: list[socket.socket] = []
        for kind in kinds * count:
            caller = stack.enter_context(connect(address_of(bridge)))
            caller.sendall(kind)
            callers.append(caller)

        assert all(closes(caller) for caller in callers)


def closes(caller: socket.socket) -> bool:
    """Wait for the end of a connection."""
    read_all(caller)
    return True


def test_a_bridge_out_of_file_descriptors_serves_on() -> None:
    """Newcomers take the place of who idles; a body that never ends behind its answer is idle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Stack() as stack:
        stack.broker()
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))  # the child inherits it
        try:
            bridge = stack.bridge("--body-timeout", "60s")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with contextlib.ExitStack() as callers:
            for _ in range(300):
                caller = callers.enter_context(connect(address_of(bridge)))
                caller.sendall(LIVEZ + b"content-length: 100\r\n\r\n")
            assert probe(bridge) < 5
        assert len(psutil.Process(bridge.pid).net_connections()) < 128
