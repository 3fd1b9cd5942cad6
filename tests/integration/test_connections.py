"""Connections of the bridge, byte by byte: upgrades, pipelines, bodies that come late or never, callers half gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, Generator

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.server import ServerState

from support.served import Address, connect, event_stream, read_all, read_until, say, serving, statuses
from support.stack import eventually
from zmqrt.bridge_http import connection, connection_limits, request_body
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.errors import RefusedError, refusal
from zmqrt.bridge_http.request_body import BodyReader, unless_gone
from zmqrt.bridge_http.server import uvicorn_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
GET = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


class Served:
    """An app for every kind of answer; it notes what happened to the work."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.finished = 0
        self.closed = 0
        self.most_at_once = 0
        self.gate = threading.Event()
        self.bodies = BodyReader(BridgeSettings(body_timeout_s=0.5))
        self._running = 0
        routes = [
            Route("/hello", self.hello, methods=["GET", "POST", "DELETE"]),
            Route("/echo", self.echo, methods=["POST"]),
            Route("/large", self.large, methods=["POST"]),
            Route("/huge", self.huge, methods=["POST"]),
            Route("/wait", self.wait, methods=["POST"]),
            Route("/stream", self.stream, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def hello(self, _request: Request) -> Response:
        """Answer at once, whatever comes in."""
        return PlainTextResponse("hello")

    async def echo(self, request: Request) -> Response:
        """Answer with the body."""
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        try:
            return Response(await self.bodies.read(request.headers, request.scope, request.receive))
        except ClientDisconnect:
            return Response(status_code=499)
        except RefusedError as error:
            return refusal(error, "/infer", "r")
        finally:
            self._running -= 1

    async def large(self, _request: Request) -> Response:
        """Answer with more than a thousandth of what the buffers of the system hold."""
        self.finished += 1
        return PlainTextResponse(b"x" * 65536)

    async def huge(self, _request: Request) -> Response:
        """Answer with more than the buffers of the system hold."""
        return PlainTextResponse(b"x" * (1 << 20))

    async def wait(self, request: Request) -> Response:
        """Answer when the gate opens, and not for a caller who has left."""
        await request.body()
        try:
            await unless_gone(self._until_open(), request.scope, request.receive)
        except ClientDisconnect:
            self.cancelled += 1
            return Response(status_code=499)
        self.finished += 1
        return PlainTextResponse("waited")

    async def stream(self, request: Request) -> Response:
        """Answer with one event when the gate opens, and another."""
        await request.body()
        return event_stream(self._events(), self._close)

    async def _events(self) -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        await self._until_open()
        yield b"data: 2\n\n"
        self.finished += 1

    def _close(self) -> None:
        self.closed += 1

    async def _until_open(self) -> None:
        while not self.gate.is_set():  # noqa: ASYNC110 - it is opened from another thread
            await asyncio.sleep(0.01)


@pytest.fixture
def served() -> Served:
    """The app."""
    return Served()


@pytest.fixture
def address(served: Served) -> Generator[Address]:
    """Its server, with short clocks."""
    with serving(served.app, body_timeout_s=0.5, head_timeout_s=5.0, keep_alive_timeout_s=0.5) as where:
        yield where
        served.gate.set()


def post(path: bytes, body: bytes = b"", fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Write a request with a body of known length."""
    length = b"content-length: %d\r\n" % len(body)
    return b"POST %s HTTP/%s\r\nhost: x\r\n%s%s\r\n%s" % (path, version, fields, length, body)


H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
UPGRADES = [H2C, b"connection: keep-alive, upgrade\r\nupgrade: websocket\r\n", b"connection: upgrade\r\nupgrade: x\r\n"]


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_a_body_behind_a_declined_upgrade_belongs_to_its_request(address: Address, upgrade: bytes) -> None:
    """Also if it comes late and looks like a request: one answer for each request."""
    whole = post(b"/echo", GET, upgrade)
    with connect(address) as caller:
        caller.sendall(whole[: -len(GET)])
        assert not readable(caller, 0.2)
        caller.sendall(GET)
        said = read_until(caller, GET)
        caller.sendall(LAST)
        said += read_all(caller)

    assert statuses(said) == [200, 200]
    assert said.endswith(b"\r\n\r\nhello")


def test_chunks_behind_a_declined_upgrade_belong_to_it_too(address: Address) -> None:
    """And what stands in their trailer is no field of the request behind."""
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\n" + H2C + b"transfer-encoding: chunked\r\n\r\n"
    said = say(address, head, b"%x\r\n%s\r\n0\r\nhost: y\r\n\r\n" % (len(GET), GET), LAST)

    assert statuses(said) == [200, 200]
    assert GET in said


def readable(caller: socket.socket, within_s: float) -> bool:
    """Say whether anything comes in that time."""
    caller.settimeout(within_s)
    try:
        return bool(caller.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        caller.settimeout(20)


@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"DELETE", b"POST"]
)  # whoever adds a body to a method without one must not shift what follows
def test_a_body_is_skipped_where_nobody_reads_it(address: Address, method: bytes) -> None:
    """Whatever the method: the next request is the next request."""
    body = b"GET /echo HTTP/1.1\r\n\r\n"
    raw = method + b" /hello HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    chunked = method + b" /hello HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    said = say(address, raw, chunked, b"3\r\nabc\r\n0\r\n\r\n", LAST)

    assert statuses(said) == [200, 200, 200]


def test_requests_in_a_row_are_answered_in_order_one_at_a_time(served: Served, address: Address) -> None:
    """With bodies, without, in one packet or many: what waits for its turn has not been begun."""
    row = [post(b"/echo", b"%d" % n) if n % 2 else GET for n in range(40)]
    raw = b"".join(row) + LAST
    for size in (len(raw), 7):
        said = say(address, *[raw[at : at + size] for at in range(0, len(raw), size)])

        assert statuses(said) == [200] * 41
        bodies = [part.partition(b"\r\n\r\n")[2] for part in said.split(b"HTTP/1.1 200 OK")[1:]]
        assert bodies == [b"%d" % n if n % 2 else b"hello" for n in range(40)] + [b"hello"]
    assert served.most_at_once == 1


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n" + GET, 405),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (b"GET /hello HTTP/1.1\r\n\r\n" + GET, 400),
        (b"GET /hello HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n" + GET, 400),
        (b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" + GET, 400),
        (b"GET /hello HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n" + GET, 431),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n" + GET, 414),
    ],
)
def test_what_is_refused_ends_its_connection(address: Address, raw: bytes, status: int) -> None:
    """One answer that both kinds of client can read, and nothing of what follows."""
    said = say(address, raw)
    head, _, body = said.partition(b"\r\n\r\n")

    assert int(said[9:12]) == status
    assert b"connection: close" in head
    assert b"content-type: application/json" in head
    assert body.startswith(b'{"detail":"')
    assert body.endswith(b"}}")


def test_an_empty_line_before_a_request_is_none_of_it(address: Address) -> None:
    """Old clients send one behind a body."""
    assert statuses(say(address, b"\r\n\r\n", GET, b"\r\n", LAST)) == [200, 200]


@pytest.mark.parametrize("path", [b"/echo", b"/wait", b"/stream"])
def test_a_caller_who_ends_its_sending_half_gets_the_whole_answer(
    served: Served, address: Address, path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As netcat and socat do. Bytes sent to see whether it is there are part of the answer, however late that is."""
    monkeypatch.setattr(connection_limits, "_PROBES_S", (0.01,) * 20)
    threading.Timer(0.5, served.gate.set).start()
    said = say(address, post(path, b"abc"), half_close=True)

    assert statuses(said) == [200]
    expected = {b"/echo": b"abc", b"/wait": b"waited", b"/stream": b"data: 2\n\n\r\n0\r\n\r\n"}[path]
    assert said.endswith(expected)
    assert (served.cancelled, said.count(b"HTTP/1.1")) == (0, 1)


def test_a_half_closed_row_is_answered_to_its_end(served: Served, address: Address) -> None:
    """What was whole when the end came; half a request behind it is nothing."""
    served.gate.set()

    assert statuses(say(address, post(b"/wait", b"a"), post(b"/echo", b"b"), GET, half_close=True)) == [200] * 3
    assert statuses(say(address, post(b"/wait", b"a"), GET[:-3], half_close=True)) == [200]
    row = post(b"/wait", b"a") + post(b"/echo", b"abc")[:-1]
    assert statuses(say(address, row, half_close=True)) == [200, 400]


@pytest.mark.parametrize("size", [20_000, 200_000, 2_000_000])
def test_a_large_body_in_chunks_is_whole_though_its_sender_sends_no_more(address: Address, size: int) -> None:
    """Its end is here before all of it is read: chunks are read in small parts, so that others come first."""
    head = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = (b"3e8\r\n" + b"x" * 1000 + b"\r\n") * (size // 1000)
    said = say(address, head + chunks + b"0\r\n\r\n", half_close=True)

    assert statuses(said) == [200]
    assert said.endswith(b"x" * size)
    assert statuses(say(address, head + chunks, half_close=True)) == [400], "without a last chunk it is half a body"


@pytest.mark.parametrize("row", [b"", GET * 10_000])
@pytest.mark.parametrize("path", [b"/wait", b"/stream"])
def test_a_caller_who_is_gone_is_told_from_one_who_reads(
    served: Served, address: Address, path: bytes, row: bytes
) -> None:
    """Both send the same; only of one who is gone the machine refuses what it is sent.

    Also if it has sent so much that reading stands still, and its end is not seen.
    """
    with connect(address) as caller:
        caller.sendall(post(path, b"abc") + row)
        if path == b"/stream":
            read_until(caller, b"data: 1\n\n")
    eventually(lambda: served.cancelled + served.closed == 1, within_s=10, what="the end of the work")

    assert served.finished == 0


def test_half_a_request_from_a_caller_who_ends_is_none(served: Served, address: Address) -> None:
    """Half a head is closed, half a body is told so; nothing is run."""
    assert say(address, GET[:-3], half_close=True) == b""
    assert statuses(say(address, post(b"/echo", b"abc")[:-1], half_close=True)) == [400]
    assert statuses(say(address, post(b"/wait", b"abc")[:-1], half_close=True)) == [400]
    assert served.finished == 0


def test_http_1_0_gets_a_stream_without_chunks_that_ends_with_its_connection(served: Served, address: Address) -> None:
    """It does not know chunks."""
    served.gate.set()
    said = say(address, post(b"/stream", b"abc", version=b"1.0"))
    head, _, body = said.partition(b"\r\n\r\n")

    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body == b"data: 1\n\ndata: 2\n\n"


def test_http_1_0_keeps_a_connection_that_it_asks_to_keep(served: Served, address: Address) -> None:
    """If the answer has a length; else its end is that of the connection."""
    kept = b"GET /hello HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
    said = say(address, kept, kept, b"GET /hello HTTP/1.0\r\n\r\n", GET)

    assert statuses(said) == [200, 200, 200]
    assert said.count(b"connection: keep-alive") == 2
    served.gate.set()
    said = say(address, post(b"/stream", b"abc", b"connection: keep-alive\r\n", b"1.0"), GET)
    assert statuses(said) == [200]


def test_expect_gets_its_continue_only_if_the_body_is_wanted(address: Address) -> None:
    """An early answer says that the connection ends: nobody can know whether the body comes."""
    head = post(b"/echo", b"abc", b"expect: 100-continue\r\n")[:-3]
    with connect(address) as caller:
        caller.sendall(head)
        assert read_until(caller, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(b"abc")
        assert read_until(caller, b"abc").startswith(b"HTTP/1.1 200")

    early = say(address, head.replace(b"/echo", b"/hello"))
    assert statuses(early) == [200]
    assert b"connection: close" in early
    assert statuses(say(address, head + b"abc", LAST)) == [200, 200], "it did not wait"


@pytest.mark.parametrize(
    "framing", [b"content-length: 1000\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
@pytest.mark.parametrize("path", [b"/hello", b"/nowhere", b"/echo"])
def test_a_body_without_an_end_ends_with_the_clock(
    address: Address, path: bytes, framing: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind an early answer too; and also if it goes on and on."""
    monkeypatch.setattr(connection, "_LINGER_S", 0.1)
    head = b"POST " + path + b" HTTP/1.1\r\nhost: x\r\n"
    with connect(address) as caller:
        caller.sendall(head + framing)
        read_all(caller)
    with connect(address) as caller:
        caller.sendall(head + framing)
        trickle(caller, b"1\r\na\r\n" if b"chunked" in framing else b"a")


def trickle(caller: socket.socket, piece: bytes) -> None:
    """Send a little again and again; return when the server has closed."""
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        try:
            caller.sendall(piece)
        except ConnectionError:
            return
        time.sleep(0.05)
    raise AssertionError("the server reads for ever")


def test_an_early_answer_is_read_by_a_caller_who_is_still_sending(address: Address) -> None:
    """To close at once would take it away."""
    body = b"x" * (8 << 20)
    said = say(address, post(b"/hello", body), LAST)

    assert statuses(said) == [200, 200]
    assert statuses(say(address, post(b"/hello", body, b"connection: close\r\n"))) == [200]


def test_large_bodies_share_one_bound_and_small_ones_are_let_in(
    served: Served, address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who finds no room is told when to come back; it is free again when the others are read, too slow, or gone."""
    monkeypatch.setattr(request_body, "_MOST_BYTES", 1 << 20)
    served.bodies = BodyReader(BridgeSettings(body_limit_bytes=1 << 20, body_timeout_s=20))
    large = post(b"/echo", b"x" * 700_000)
    for end in (large[-1:], b""):
        with connect(address) as first:
            first.sendall(large[:-1])
            eventually(lambda: served.bodies.room_bytes < 500_000, what="the first body")
            said = say(address, large, LAST)
            assert statuses(said) == [503, 200]
            assert b"retry-after: 1" in said
            assert b"bodies_full" in said
            assert statuses(say(address, post(b"/echo", b"x" * 60_000), LAST)) == [200, 200]
            first.sendall(end)
            assert not end or statuses(read_until(first, large[-700_000:])) == [200]
        eventually(lambda: served.bodies.room_bytes == 1 << 20, what="room")
        assert statuses(say(address, large, LAST)) == [200, 200]


def test_a_connection_may_idle_as_long_as_it_is_told_and_no_longer(served: Served) -> None:
    """Each answer begins the time anew."""
    with serving(served.app, keep_alive_timeout_s=1.5, head_timeout_s=0.2) as address, connect(address) as caller:
        for _ in range(2):
            caller.sendall(GET)
            read_until(caller, b"hello")
            assert not readable(caller, 0.7)
        assert read_all(caller) == b""


def test_newcomers_take_the_place_of_those_who_idle(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """However they idle; who waits for an answer keeps its place. Without any room there is an answer that says so."""
    with serving(served.app, max_connections=4) as address:
        kinds = (b"", GET[:-2], post(b"/hello", b"abc")[:-1], GET)
        idle = [connect(address) for _ in kinds]
        for caller, raw in zip(idle, kinds, strict=True):
            caller.sendall(raw)
        read_until(idle[2], b"hello")
        read_until(idle[3], b"hello")
        busy = [connect(address) for _ in range(4)]
        for caller in busy:
            caller.sendall(post(b"/wait", b"abc"))
        for caller in idle:
            assert read_all(caller) == b""
        with caplog.at_level(logging.ERROR):
            refused = [say(address, GET) for _ in range(5)]
        served.gate.set()

        assert [read_until(caller, b"waited")[9:12] for caller in busy] == [b"200"] * 4
        assert [one[9:12] for one in refused] == [b"503"] * 5
        assert b"retry-after: 1" in refused[0]
        assert len([record for record in caplog.records if "all 4 connections" in record.message]) == 1
        for caller in (*idle, *busy):
            caller.close()


def test_a_reader_that_takes_none_of_many_answers_is_cut_off(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """They are not begun while nobody takes those before."""
    many = 1000
    with (
        caplog.at_level(logging.INFO),
        serving(served.app, write_timeout_s=0.5) as address,
        connect(address) as caller,
    ):
        caller.sendall(post(b"/large") * many)

        eventually(lambda: "took nothing for 0.5 s" in caplog.text, what="the end of patience")
        assert served.finished < many


def test_a_reader_that_stops_before_the_last_bytes_is_cut_off(served: Served) -> None:
    """Also when so little is left that nothing piles up, and the connection is closing already."""

    async def story() -> None:
        config = uvicorn_config(served.app, BridgeSettings(write_timeout_s=0.2))
        config.load()
        state = ServerState()
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(lambda: config.http(config, state, {}), ours)  # type: ignore[call-arg, operator]
            await loop.sock_sendall(theirs, post(b"/huge", b"", b"connection: close\r\n"))
            await loop.sock_recv(theirs, 1)
            while not transport.is_closing():  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.01)
            while transport.get_write_buffer_size() > 16 << 10:
                await loop.sock_recv(theirs, 1024)
            assert transport.get_write_buffer_size() > 0
            async with asyncio.timeout(20):
                while state.connections:  # noqa: ASYNC110 - nor does this
                    await asyncio.sleep(0.01)

    asyncio.run(story())


@pytest.mark.parametrize("rest", [b"content-length: 9\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"])
def test_a_drain_does_not_wait_for_bodies_that_nobody_reads(
    served: Served, rest: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor for callers who idle: the end comes before the time for it is over."""
    monkeypatch.setattr(connection, "_LINGER_S", 0.1)
    with contextlib.ExitStack() as callers, serving(served.app, body_timeout_s=60, drain_timeout_s=10) as address:
        for raw in (b"POST /hello HTTP/1.1\r\nhost: x\r\n" + rest, GET, GET[:-3], b""):
            caller = callers.enter_context(connect(address))
            caller.sendall(raw)
            if raw.startswith((b"POST", GET)):
                read_until(caller, b"hello")

    assert "timeout graceful shutdown exceeded" not in caplog.text


def test_an_answer_that_breaks_off_looks_broken(caplog: pytest.LogCaptureFixture) -> None:
    """No last chunk, no length that is not kept; and one that never began is a 500."""

    async def app(scope: dict[str, object], _receive: object, send: object) -> None:
        if scope["path"] != "/at-once":
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
            await send({"type": "http.response.body", "body": b"half", "more_body": True})  # type: ignore[operator]
        if scope["path"] != "/in-silence":
            raise RuntimeError("broken")

    with serving(app) as address:  # type: ignore[arg-type]  # as small as an app can be
        for path in (b"/raised", b"/in-silence"):
            said = say(address, b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
            assert said.endswith(b"half\r\n")
        assert statuses(say(address, b"GET /at-once HTTP/1.1\r\nhost: x\r\n\r\n")) == [500]

    assert "broken" in caplog.text


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        (b"x: " + b"x" * 70000, 431),
        (b"".join(b"x: y\r\n" for _ in range(120)) + b"\r\n", 431),
        (b"host: two\r\n\r\n", 400),
        (b"content-length: x\r\n\r\n", 400),
        (b"transfer-encoding: chunked\r\n\r\nno chunk\r\n", 400),
    ],
)
def test_a_page_reads_what_the_connection_itself_refuses(served: Served, rest: bytes, status: int) -> None:
    """If its origin is allowed and has come; other pages read nothing."""
    with serving(served.app, cors_origin=("https://app.example",)) as address:
        for origin, is_told in ((b"https://app.example", True), (b"https://evil.example", False)):
            with connect(address) as caller:
                caller.sendall(b"POST /hello HTTP/1.1\r\nHost: localhost\r\nOrigin: " + origin + b"\r\n" + rest)
                head = read_all(caller).partition(b"\r\n\r\n")[0].lower()
            assert head.startswith(b"http/1.1 %d" % status)
            assert (b"\r\naccess-control-allow-origin: https://app.example" in head) is is_told
            assert (b"\r\naccess-control-" in head) is is_told
