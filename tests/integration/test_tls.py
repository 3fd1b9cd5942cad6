"""TLS of the bridge, over real sockets: answers, and what those get who are no TLS, too slow, or too many."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Generator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from support.certificates import Pem, make_pem
from support.served import Address, connect, read_all, say, serving
from support.stack import eventually
from zmqrt.bridge_http import tls

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


async def _echo(request: Request) -> Response:
    return Response(await request.body())


async def _scheme(request: Request) -> Response:
    return PlainTextResponse(request.url.scheme)


APP = Starlette(routes=[Route("/", _scheme), Route("/echo", _echo, methods=["POST"])])


@pytest.fixture
def pem(tmp_path: Path) -> Pem:
    """A certificate."""
    return make_pem(tmp_path)


@pytest.fixture
def address(pem: Pem) -> Generator[Address]:
    """A server with few and impatient connections."""
    settings = {"tls_cert": pem.chain, "tls_key": pem.key, "max_connections": 2, "head_timeout_s": 0.5}
    with serving(APP, **settings) as address:
        yield address


@contextlib.contextmanager
def secured(address: Address, pem: Pem) -> Generator[ssl.SSLSocket]:
    """Connect, and shake hands; a farewell that is missing is an error."""
    with (
        connect(address) as plain,
        pem.trusting().wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as caller,
    ):
        yield caller


def test_requests_are_answered_and_the_end_is_said(address: Address, pem: Pem) -> None:
    """Several on one connection; and the farewell tells a whole answer from one that somebody cut."""
    with secured(address, pem) as caller:
        caller.sendall(GET + LAST)
        said = read_all(caller)

    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert said.endswith(b"\r\n\r\nhttps")


def test_large_bodies_come_whole_both_ways(address: Address, pem: Pem) -> None:
    """More than all buffers on the way hold, so that both sides wait for one another."""
    body = bytes(range(256)) * (4 << 12)
    with secured(address, pem) as caller:
        caller.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body))
        caller.sendall(body)
        said = read_all(caller)

    assert said.partition(b"\r\n\r\n")[2] == body


def test_a_refused_caller_reads_why(address: Address, pem: Pem) -> None:
    """Though it has more to send: our half ends, and what still comes is thrown away."""
    with secured(address, pem) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 60_000)
        said = read_all(caller)

    assert said.startswith(b"HTTP/1.1 400")
    assert b"bad_host" in said


def test_plain_http_is_told_to_use_https(address: Address) -> None:
    """In HTTP, since that is what it reads."""
    said = say(address, GET)

    assert said.startswith(b"HTTP/1.1 400")
    assert b"use https://, not http://" in said


def test_tls_at_a_plain_port_is_told_of_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Its caller could not read a sentence."""
    with serving(APP) as plain, connect(plain) as caller, caplog.at_level("INFO"), pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(caller, server_hostname="localhost")

    assert "--tls-cert" in caplog.text


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00", b"\x16" + b"\xff" * 600])
def test_half_a_handshake_ends_and_makes_room_for_others(address: Address, pem: Pem, sent: bytes) -> None:
    """It counts as a connection from its first moment, and is the first to go."""
    with contextlib.ExitStack() as held:
        callers = [held.enter_context(connect(address)) for _ in range(6)]
        for caller in callers:
            with contextlib.suppress(ConnectionError):
                caller.sendall(sent)
        with secured(address, pem) as good:
            good.sendall(LAST)
            assert read_all(good).endswith(b"https")
        for caller in callers:  # the last of them by the clock for heads
            read_all(caller)


def test_an_old_protocol_is_refused(address: Address) -> None:
    """TLS 1.1 and before have holes; who offers no more gets an alert that says so."""
    hello = bytes.fromhex("160302002f0100002b0302") + b"\0" * 32 + bytes.fromhex("000004002f00350100")

    assert say(address, hello)[:1] == b"\x15"


def subject(address: Address) -> str:
    """Return whom the certificate names that a newcomer is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect(address) as plain, context.wrap_socket(plain) as caller:
        shown = caller.getpeercert(binary_form=True) or b""
    return "second" if b"second" in shown else "first"


def test_a_renewed_certificate_counts_and_a_broken_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a restart, and without cutting who is connected."""
    monkeypatch.setattr(tls, "_LOOK_EVERY_S", 0.0)
    pem = make_pem(tmp_path, "first")
    with serving(APP, tls_cert=pem.chain, tls_key=pem.key) as address, secured(address, pem) as early:
        assert subject(address) == "first"
        pem.chain.write_text("half a cert", encoding="utf-8")
        assert subject(address) == "first"
        make_pem(tmp_path, "second")
        eventually(lambda: subject(address) == "second", what="the new certificate")
        early.sendall(LAST)
        assert read_all(early).endswith(b"https")

    assert "the certificate from before is used on" in caplog.text


def test_a_reader_that_takes_nothing_is_cut_off(pem: Pem, caplog: pytest.LogCaptureFixture) -> None:
    """As without TLS: what is encrypted waits in the socket's own buffer, which has a bound and a clock."""
    body = b"x" * (8 << 20)
    settings = {"tls_cert": pem.chain, "tls_key": pem.key, "write_timeout_s": 0.3}
    with serving(APP, **settings) as address, secured(address, pem) as caller, caplog.at_level("INFO"):
        caller.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
        caller.sendall(body)
        eventually(lambda: "and is cut off" in caplog.text, what="the end of who does not read")
