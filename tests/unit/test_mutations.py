"""What strangers send and operators write, changed in places: it is read, or refused by the error that its reader
promises, and never anything else. `make test-all` tries more of each."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zmqrt.bridge_http.errors import RefusedError
from zmqrt.bridge_http.forwarded import TrustedProxies, read_networks
from zmqrt.bridge_http.request_parser import RequestParser
from zmqrt.protocol import authorized_keys, codec, join_line
from zmqrt.protocol import messages as m
from zmqrt.protocol.api_keys import read_ring
from zmqrt.protocol.errors import ConfigurationError, ProtocolError

REQUESTS = (
    b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"PUT http://a/x?y=%C3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nt: u\r\n\r\n",
    b"\r\nOPTIONS * HTTP/1.0\r\nConnection: keep-alive, close\r\nForwarded: for=1.2.3.4;proto=https\r\n\r\n",
)
KEY_FILE = f"""# keys
acme:s3cret
acme:sha256${"a" * 64} name=team models=tiny,llama-* priority=bulk rpm=5 tpm=1k budget=3M expires=2027-01-01
acme:* rpm=60 budget=10M
"""
KEY_LIST = f"{'a' * 40} edge bridge expires=2027-01-01T10:00\n# no\n{'b' * 40} gpu-7 once used=2026-01-01\n"
LINE = join_line.write_line("worker", ("tcp://b:7556",), b"0" * 40, b"1" * 40, "gpu-7", 2e9)
SMALL = m.Request(b"r" * 16, "svc", 1000, m.STREAM, 0, 0, 0, b"body")
LARGE = m.Request(b"l" * 16, "svc", 1000, 0, 0, 0, 0, b"z" * 70_000)
ENVELOPE = codec.pack([SMALL, LARGE])[0]
Edits = list[tuple[int, int, bytes]]
EDITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40), st.binary(max_size=12)), max_size=6)


def mutated(raw: bytes, edits: Edits) -> bytes:
    """Replace pieces: so many bytes at a place by others."""
    for place, count, by in edits:
        at = place % (len(raw) + 1)
        raw = raw[:at] + by + raw[at + count :]
    return raw


def parsed(pieces: list[bytes]) -> tuple[list[Any], bool]:
    """Read heads and bodies as they come; say whether it ended with a refusal."""
    parser, found = RequestParser(), list[Any]()
    try:
        for piece in pieces:
            parser.feed(piece)
            while parser.waiting:
                if parser.is_in_body:
                    body = parser.next_piece()
                    if body and found and isinstance(found[-1], bytes):
                        found[-1] += body
                    elif body:
                        found.append(body)
                elif (head := parser.next_head()) is None:
                    break
                else:
                    found.append(head)
    except RefusedError:
        if found and isinstance(found[-1], bytes):
            found.pop()  # how much of a broken body was read before its fault depends on the cuts
        return found, True
    return found, False


@given(st.sampled_from(REQUESTS), EDITS, st.lists(st.integers(0, 200), max_size=5))
def test_requests_mean_the_same_however_they_are_cut(raw: bytes, edits: Edits, cuts: list[int]) -> None:
    """A proxy before the bridge cuts them otherwise than their caller: a second reading would smuggle a request."""
    sent = mutated(raw, edits) + raw
    places = sorted({0, *(cut % len(sent) for cut in cuts), len(sent)})
    whole = parsed([sent])

    assert parsed([sent[start:end] for start, end in pairwise(places)]) == whole
    for head in whole[0]:
        if not isinstance(head, bytes):
            TrustedProxies(read_networks(["10.0.0.1"])).asked_by("10.0.0.1", head.fields)


@given(EDITS)
def test_files_of_keys_are_read_or_refused(edits: Edits) -> None:
    """Of HTTP callers, and of the machines of a fleet."""
    with contextlib.suppress(ValueError):
        read_ring([line for line in mutated(KEY_FILE.encode(), edits).decode("utf-8", "replace").splitlines() if line])
    with contextlib.suppress(ConfigurationError):
        authorized_keys.parse(mutated(KEY_LIST.encode(), edits).decode("utf-8", "replace"), Path("list"))


@given(EDITS)
def test_a_line_to_join_by_is_the_one_that_was_made_or_none(edits: Edits) -> None:
    """It has a check sum, so nothing that was changed leads to another broker."""
    with contextlib.suppress(ConfigurationError):
        assert join_line.read_line(mutated(LINE.encode(), edits).decode("utf-8", "replace")) == join_line.read_line(
            LINE
        )


@given(EDITS, EDITS)
def test_envelopes_are_read_or_refused(header: Edits, frame: list[tuple[int, int, bytes]]) -> None:
    """By each of the four that read the wire."""
    frames = [mutated(bytes(ENVELOPE[0]), header), *(mutated(bytes(one), frame) for one in ENVELOPE[1:])]
    for one in (codec.FROM_CLIENT, codec.TO_CLIENT, codec.FROM_WORKER, codec.TO_WORKER):
        with contextlib.suppress(ProtocolError):
            one.unpack(frames)
