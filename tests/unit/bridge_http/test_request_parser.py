"""What a peer sends, cut into requests: the same however it arrives, and never in another way than a strict parser."""

import itertools
import random
from collections.abc import Sequence

import h11
import pytest

from zmqrt.bridge_http.errors import RefusedError
from zmqrt.bridge_http.request_parser import ChunkedBody, RequestParser

Asked = tuple[str, bytes, bytes]
"""Method, target and body of a request."""
DAMAGE = (
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"0", b"1", b"\0", b"\x0b", b"\x80", b",", b";", b"+", b"-", b"_"),
    *(b"\r\n\r\n", b"\n\n", b"\r\r\n", b'"', b"chunked", b"HTTP/1.0", b"FFFFFFFFFFFFFFFF", b"10000000000000000"),
    *(b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Content-Length:"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n", b" Transfer-Encoding: chunked\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"GET /s HTTP/1.1\r\nHost: x\r\n\r\n"),
)


def ours(pieces: Sequence[bytes]) -> list[Asked]:
    """Return the whole requests before the first that is refused."""
    intake, asked = RequestParser(), list[Asked]()
    method, target, body = "", b"", b""
    try:
        for piece in pieces:
            intake.feed(piece)
            while intake.waiting:
                if intake.is_in_body:
                    body += intake.next_piece()
                elif (head := intake.next_head()) is not None:
                    method, body = head.method, b""
                    target = head.raw_path + (b"?" + head.query if head.query else b"")
                else:
                    break
                if not intake.is_in_body:
                    asked.append((method, target, body))
    except RefusedError:
        pass
    return asked


def theirs(raw: bytes) -> list[Asked]:
    """Do the same with h11, a new one for each request: no answer is written here."""
    asked = list[Asked]()
    method, target, body = "", b"", b""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(raw)
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                method, target, body = event.method.decode(), event.target, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                asked.append((method, target, body))
                rest, _ = parser.trailing_data
                parser = h11.Connection(h11.SERVER)
                parser.receive_data(rest)
            else:
                return asked
    except h11.RemoteProtocolError:
        return asked


def row(dice: random.Random) -> bytes:
    """Write some requests that are right."""
    raw = b""
    for _ in range(dice.randint(1, 4)):
        head = b"POST %s HTTP/1.1\r\nHost: x\r\n" % dice.choice((b"/a", b"/b?x=1"))
        head += dice.choice((b"", b"a: b\r\n", b"x:\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"))
        body = bytes(dice.choice(b"abc\r\n0 GET/") for _ in range(dice.randint(1, 30)))
        kinds = (
            head.replace(b"POST", b"GET") + b"\r\n",
            head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
            head + b"Transfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(body), body),
            head + b"Transfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n%x\r\n%s\r\n0\r\nt: v\r\n\r\n" % (len(body), body),
        )
        raw += dice.choice(kinds)
    return raw


def damaged(dice: random.Random, raw: bytes) -> bytes:
    """Put something in, take something out, or change something."""
    for _ in range(dice.randint(0, 3)):
        at = dice.randrange(len(raw))
        new = dice.choice((dice.choice(DAMAGE), b"", bytes([dice.randrange(256)])))
        raw = raw[:at] + new + raw[at + dice.choice((0, 1, 1, 2, 5)) :]
    return raw


@pytest.mark.parametrize("seed", range(4))
def test_requests_end_where_a_strict_parser_ends_them(seed: int) -> None:
    """However they are damaged: if one is read in two ways, a request is smuggled in through the difference.

    What either refuses is not compared; nor what follows an empty line or a fragment, where h11 does other things.
    """
    dice = random.Random(seed)
    for _ in range(600):
        raw = damaged(dice, row(dice))
        mine, other = ours([raw]), theirs(raw)
        both = [one for one in zip(mine, other, strict=False) if b"#" not in one[1][1]]

        assert [one for one, _ in both] == [one for _, one in both], raw


@pytest.mark.parametrize("seed", range(2))
def test_requests_are_the_same_however_their_bytes_arrive(seed: int) -> None:
    """At once, in pieces, or one by one."""
    dice = random.Random(seed)
    for _ in range(300):
        raw = damaged(dice, row(dice))
        cuts = [0, *sorted(dice.randrange(len(raw) + 1) for _ in range(4)), len(raw)]
        whole = ours([raw])

        assert ours([raw[a:b] for a, b in itertools.pairwise(cuts)]) == whole, raw
        assert ours([raw[at : at + 1] for at in range(len(raw))]) == whole, raw


# --- where bodies end ------------------------------------------------------------------------------------------------

NEXT = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKS = b'3\r\nab\n\r\n004;name="a;b"\r\n\r\n\r\n\r\n0\r\nx-api-key: late\r\nhost: b\r\n\r\n'


@pytest.mark.parametrize(
    ("framing", "raw", "expected"),
    [
        (b"content-length: 7", b"ab\nc\r\nd", b"ab\nc\r\nd"),
        (b"content-length: 0", b"", b""),
        (b"transfer-encoding: chunked", CHUNKS, b"ab\n\r\n\r\n"),
    ],
)
def test_a_body_ends_where_it_ends(framing: bytes, raw: bytes, expected: bytes) -> None:
    """In one piece with the next request, byte by byte, or cut anywhere; trailers are dropped."""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    whole = b"POST /first HTTP/1.1\r\nhost: a\r\n" + framing + b"\r\n\r\n" + raw + NEXT
    cut = sorted(dice.randrange(len(whole)) for _ in range(3))
    cuts = [whole[i:j] for i, j in zip([0, *cut], [*cut, None], strict=True)]
    for pieces in ([whole], [whole[i : i + 1] for i in range(len(whole))], cuts):
        assert ours(pieces) == [("POST", b"/first", expected), ("GET", b"/next", b"")], f"seed {seed}"


@pytest.mark.parametrize(
    "raw",
    [
        b"3\nabc\r\n",
        b"3\r\nabcd",
        b"3\r\nabc\n0\r\n\r\n",
        b"-1\r\n",
        b"0x3\r\n",
        b"3 \r\n",
        b"\r\n",
        b"ffffffffffffffffff\r\n",
        b"0\r\n\n",
        b"0\r\nno colon\r\n",
    ],
)
def test_chunks_of_two_readings_are_refused(raw: bytes) -> None:
    """A proxy before the bridge may read them otherwise."""
    with pytest.raises(RefusedError) as caught:
        ChunkedBody().feed(raw)

    assert caught.value.status == 400
