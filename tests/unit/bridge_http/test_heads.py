"""Heads of requests: what they mean, what is refused, and with which status."""

from types import SimpleNamespace

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrt.bridge_http.errors import RefusedError
from zmqrt.bridge_http.heads import MAX_FIELDS, MAX_HEAD_BYTES, end_of_head, read_head

HOST = b"host: localhost\r\n"


def get(fields: bytes = HOST, line: bytes = b"GET / HTTP/1.1") -> bytes:
    """Write a head."""
    return line + b"\r\n" + fields + b"\r\n"


def refusal(raw: bytes) -> tuple[int, str]:
    """Return status and reason of what must be refused."""
    with pytest.raises(RefusedError) as caught:
        read_head(raw)
    return caught.value.status, caught.value.reason


def test_a_head_is_read_as_a_whole() -> None:
    """Names in small letters, no spaces around values, the path without its escapes."""
    head = read_head(get(b"Host: a:1 \r\nX-Api-Key:\t k \r\ncontent-length: 7\r\n", b"POST /a%20b/c?d=%20 HTTP/1.1"))

    assert (head.method, head.version, head.path, head.raw_path, head.query) == (
        "POST", "1.1", "/a b/c", b"/a%20b/c", b"d=%20"
    )  # fmt: skip
    assert head.fields == [(b"host", b"a:1"), (b"x-api-key", b"k"), (b"content-length", b"7")]
    assert (head.length, head.keeps_alive, head.expects_continue) == (7, True, False)


@pytest.mark.parametrize(
    "fields",
    [
        b"upgrade: h2c\r\nconnection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABkAAQ\r\n",
        b"upgrade: websocket\r\nconnection: keep-alive, Upgrade\r\nsec-websocket-key: x\r\n",
        b"upgrade: a\r\nupgrade: b\r\nconnection: upgrade\r\n",
        b"upgrade: TLS/1.2\r\nconnection: upgrade\r\n",
        b"upgrade: h2c\r\n",
        b"connection: upgrade\r\n",
    ],
)
def test_an_upgrade_that_is_not_taken_changes_nothing(fields: bytes) -> None:
    """Not where the body is, and not whether the connection stays."""
    head = read_head(get(HOST + fields + b"content-length: 7\r\n", b"POST / HTTP/1.1"))

    assert (head.length, head.keeps_alive) == (7, True)
    assert read_head(get(HOST + fields + b"transfer-encoding: chunked\r\n", b"POST / HTTP/1.1")).length is None


@pytest.mark.parametrize(
    ("version", "connection", "keeps_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"connection: close\r\n", False),
        (b"1.1", b"connection: Upgrade, Close\r\nupgrade: h2c\r\n", False),
        (b"1.1", b"connection: keep-alive\r\nconnection: close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"connection: Keep-Alive\r\n", True),
        (b"1.0", b"connection: keep-alive, close\r\n", False),
    ],
)
def test_a_connection_stays_as_its_version_has_it(version: bytes, connection: bytes, *, keeps_alive: bool) -> None:
    """HTTP/1.0 closes unless told, HTTP/1.1 stays unless told."""
    assert read_head(get(HOST + connection, b"GET / HTTP/" + version)).keeps_alive is keeps_alive


def test_a_target_that_names_a_host_counts_before_the_field() -> None:
    """As a proxy would read it; so who is let in by Host is judged by the same name."""
    head = read_head(get(b"host: localhost\r\n", b"GET http://evil.example:80/a?b HTTP/1.1"))

    assert (head.path, head.query, head.fields) == ("/a", b"b", [(b"host", b"evil.example:80")])
    assert read_head(get(HOST, b"GET http://a HTTP/1.1")).path == "/"
    assert read_head(get(HOST, b"GET //a/b HTTP/1.1")).path == "//a/b"


@pytest.mark.parametrize(
    ("fields", "version", "status"),
    [
        (b"", b"1.1", 400),
        (b"", b"1.0", 200),
        (b"host:\r\n", b"1.1", 200),
        (b"host: a\r\nhost: a\r\n", b"1.1", 400),
        (b"host: a\r\nHost: b\r\n", b"1.0", 400),
        (b"host: a, b\r\n", b"1.1", 400),
        (b"host: a b\r\n", b"1.1", 400),
        (b"host: u@a\r\n", b"1.1", 400),
        (b"host: a/b\r\n", b"1.1", 400),
        (b"host: [::1]:80\r\n", b"1.1", 200),
    ],
)
def test_there_is_one_host(fields: bytes, version: bytes, status: int) -> None:
    """HTTP/1.1 must say it; nobody may say it twice."""
    raw = get(fields, b"GET / HTTP/" + version)

    if status == 200:
        assert read_head(raw).path == "/"
    else:
        assert refusal(raw) == (400, "bad_host")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"content-length: 3\r\ncontent-length: 3\r\n", 400),
        (b"content-length: 3\r\ncontent-length: 4\r\n", 400),
        (b"content-length: 3, 3\r\n", 400),
        (b"content-length: +3\r\n", 400),
        (b"content-length: -3\r\n", 400),
        (b"content-length: 0x3\r\n", 400),
        (b"content-length:\r\n", 400),
        (b"content-length: 99999999999999999999\r\n", 400),
        (b"content-length: 3\r\ntransfer-encoding: chunked\r\n", 400),
        (b"transfer-encoding: chunked\r\ncontent-length: 3\r\n", 400),
        (b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", 400),
        (b"transfer-encoding: gzip, chunked\r\n", 501),
        (b"transfer-encoding: gzip\r\n", 400),
        (b"transfer-encoding: chunked, gzip\r\n", 400),
        (b"transfer-encoding: xchunked\r\n", 400),
        (b"transfer-encoding : chunked\r\n", 400),
        (b"a: b\r\n c\r\n", 400),
        (b"a: b\x00c\r\n", 400),
        (b"a: b\rc\r\n", 400),
        (b": b\r\n", 400),
        (b"a b: c\r\n", 400),
    ],
)
def test_a_head_of_two_readings_is_refused(fields: bytes, status: int) -> None:
    """Where a proxy before and the bridge behind could disagree about the end of a request, or about a field."""
    assert refusal(get(HOST + fields, b"POST / HTTP/1.1"))[0] == status


def test_chunks_are_of_http_1_1() -> None:
    """A proxy of 1.0 would not see them."""
    assert refusal(get(HOST + b"transfer-encoding: chunked\r\n", b"POST / HTTP/1.0")) == (400, "not_http")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"PRI * HTTP/2.0", 505),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/3.0", 505),
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1.2", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET /\xff HTTP/1.1", 400),
        (b"GET a HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"GET / RTSP/1.0", 400),
        (b"get / HTTP/1.1", 400),
        (b"SPELL / HTTP/1.1", 501),
        (b"CONNECT a:1 HTTP/1.1", 405),
        (b"OPTIONS * HTTP/1.1", 200),
        (b"DELETE / HTTP/1.1", 200),
    ],
)
def test_what_is_no_request_of_http_1_1_says_so(line: bytes, status: int) -> None:
    """Also the preface of HTTP/2, and what wants a proxy."""
    raw = get(HOST, line)

    if status == 200:
        assert read_head(raw).length == 0
    else:
        assert refusal(raw)[0] == status


def test_headers_are_the_fields_as_text() -> None:
    """Of two with one name the first counts; spaces within a value stay, those around it are none of it."""
    head = read_head(get(HOST + b"A:\t b  c \xe9 \t\r\na: second\r\nEmpty:  \r\nb:\r\n"))

    assert head.fields[1:] == [(b"a", b"b  c \xe9"), (b"a", b"second"), (b"empty", b""), (b"b", b"")]
    assert head.headers == {"host": head.fields[0][1].decode(), "a": "b  c \xe9", "empty": "", "b": ""}


@given(st.lists(st.tuples(st.sampled_from([b"a", b"B-c", b"X_9"]), st.binary(max_size=8)), max_size=5))
def test_fields_are_those_that_llhttp_sees(given_fields: list[tuple[bytes, bytes]]) -> None:
    """It judges the syntax, and the fields are read apart: what both do not see alike would be two readings."""
    seen: list[tuple[bytes, bytes]] = []
    raw = get(HOST + b"".join(name + b":" + value + b"\r\n" for name, value in given_fields))
    try:
        head = read_head(raw)
    except RefusedError:
        return

    def on_header(name: bytes, value: bytes) -> None:
        seen.append((name.lower(), value.strip(b" \t")))

    httptools.HttpRequestParser(SimpleNamespace(on_header=on_header)).feed_data(raw)

    assert head.fields == seen


def test_bare_line_feeds_end_no_head() -> None:
    """Two servers may disagree about them."""
    assert end_of_head(bytearray(b"GET / HTTP/1.1\r\nhost: a\n\n"), 0) == 0
    assert refusal(b"GET / HTTP/1.1\nhost: a\n\n\r\n\r\n")[0] == 400


def test_the_end_of_a_head_is_found_however_it_comes() -> None:
    """Byte by byte; what follows is left alone."""
    raw = get()
    came = bytearray()
    for index in range(len(raw) - 1):
        came += raw[index : index + 1]
        assert end_of_head(came, index) == 0

    assert end_of_head(bytearray(raw + b"rest"), len(raw) - 1) == len(raw)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /" + b"x" * MAX_HEAD_BYTES, 414),
        (b"G" * MAX_HEAD_BYTES, 414),
        (get(HOST + b"a: " + b"x" * MAX_HEAD_BYTES), 431),
        (get(HOST + b"x" * MAX_HEAD_BYTES), 431),
        (get(HOST + b"a: b\r\n" * MAX_HEAD_BYTES), 431),
        (b"\x16\x03\x01", 400),
        (b"hello", 400),
        (b"GARBAGE\r\n", 400),
        (b"PRI * HTTP/2.0\r\n", 505),
    ],
)
def test_a_head_without_an_end_is_refused_at_its_limit_or_when_it_cannot_be_one(raw: bytes, status: int) -> None:
    """The first line and the fields have a status each; what is not HTTP is not waited for."""
    with pytest.raises(RefusedError) as caught:
        end_of_head(bytearray(raw), 0)

    assert caught.value.status == status


def test_fields_have_a_number() -> None:
    """A hundred are read, one more is not."""
    assert len(read_head(get(HOST + b"a: b\r\n" * (MAX_FIELDS - 1))).fields) == MAX_FIELDS
    assert refusal(get(HOST + b"a: b\r\n" * MAX_FIELDS)) == (431, "head_too_large")


def test_tls_on_this_port_is_named() -> None:
    """The usual mistake is https:// in an address."""
    with pytest.raises(RefusedError, match="https://"):
        end_of_head(bytearray(b"\x16\x03\x01"), 0)
