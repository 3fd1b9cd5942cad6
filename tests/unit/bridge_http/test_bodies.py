"""Bodies of requests: where they end, whatever comes behind."""

import random

import pytest

from zmqrt.bridge_http.bodies import Body, body_of
from zmqrt.bridge_http.heads import RefusedError

NEXT = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKS = b'3\r\nab\n\r\n004;name="a;b"\r\n\r\n\r\n\r\n0\r\nx-api-key: late\r\nhost: b\r\n\r\n'


def fed(body: Body, *pieces: bytes) -> tuple[bytes, bytes]:
    """Feed all pieces; return what belongs to the body, and what does not."""
    whole = rest = b""
    for piece in pieces:
        if body.is_complete:
            rest += piece
            continue
        part, rest = body.feed(piece)
        whole += part
    return whole, rest


@pytest.mark.parametrize(
    ("length", "raw", "expected"), [(7, b"ab\nc\r\nd", b"ab\nc\r\nd"), (None, CHUNKS, b"ab\n\r\n\r\n")]
)
def test_a_body_ends_where_it_ends(length: int | None, raw: bytes, expected: bytes) -> None:
    """In one piece with the next request, byte by byte, or cut anywhere; trailers are dropped."""
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    whole = raw + NEXT
    cut = sorted(dice.randrange(len(whole)) for _ in range(3))
    cuts = [whole[i:j] for i, j in zip([0, *cut], [*cut, None], strict=True)]
    for pieces in ([whole], [whole[i : i + 1] for i in range(len(whole))], cuts):
        body = body_of(length)
        assert fed(body, *pieces) == (expected, NEXT), f"seed {seed}"
        assert body.is_complete


def test_no_body_is_complete_at_once() -> None:
    """As most requests have it."""
    assert body_of(0).is_complete


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
        body_of(None).feed(raw)

    assert caught.value.status == 400
