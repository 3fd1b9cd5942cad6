"""The codec: what goes in comes out, and any bytes decode or raise ProtocolError, in bounded time."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.wire import ALL_MESSAGES, messages, of_struct, smallest
from zmqrt.protocol import codec
from zmqrt.protocol import messages as m
from zmqrt.protocol.errors import ProtocolError
from zmqrt.protocol.limits import INLINE_BODY_BYTES, MAX_FRAME_BYTES, MAX_HEADER_BYTES, MAX_MESSAGES

CODECS: list[tuple[Any, Any]] = [
    (codec.FROM_CLIENT, m.FromClient),
    (codec.TO_CLIENT, m.ToClient),
    (codec.FROM_WORKER, m.FromWorker),
    (codec.TO_WORKER, m.ToWorker),
]
REQUEST = m.Request(b"r" * 16, "svc", 1000, m.STREAM, 0, 0, 0, b"body")
LARGE = m.Request(b"l" * 16, "svc", 1000, m.RESUME, 0, 0, 0, b"x" * INLINE_BODY_BYTES, b"y" * 50_000)


def codec_of(struct: Any) -> Any:
    """Find the decoder whose union holds the struct."""
    return next(c for c, union in CODECS if struct in union.__args__)


def round_trip(sent: list[Any]) -> list[Any]:
    """Pack, unpack, join."""
    decoder = codec_of(sent[0].__class__)
    got: list[Any] = []
    for frames in codec.pack(sent):
        unpacked = decoder.unpack(frames)
        assert unpacked.bad == []
        got += unpacked.messages
    return got


@given(messages)
def test_every_message_survives_the_round_trip(message: Any) -> None:
    """What is packed is unpacked, field for field."""
    assert round_trip([message]) == [message]


@given(st.lists(of_struct(m.Request), min_size=1, max_size=6))
def test_a_batch_keeps_its_order(batch: list[m.Request]) -> None:
    """Messages of one envelope come out in the order they went in."""
    assert round_trip(batch) == batch


@pytest.mark.parametrize(
    "sent",
    [
        [REQUEST, LARGE, m.Bye(), LARGE],
        [LARGE] * 20,
        [REQUEST] * (2 * MAX_MESSAGES + 1),
        [m.Request(b"r" * 16, "svc", 1, 0, 0, 0, 0, b"z" * (INLINE_BODY_BYTES - 1))] * 100,
    ],
    ids=["large beside small", "more large bodies than frames", "more messages than fit", "a full header"],
)
def test_large_and_many_are_split_and_joined(sent: list[Any]) -> None:
    """Large bodies travel in frames of their own; what exceeds one envelope goes into several."""
    envelopes = codec.pack(sent)

    assert all(len(frames) <= 9 and len(frames[0]) <= MAX_HEADER_BYTES for frames in envelopes)
    assert round_trip(sent) == sent


def test_large_bodies_are_not_in_the_header() -> None:
    """A body of 32 KiB or more is a frame."""
    (frames,) = codec.pack([LARGE])

    assert [len(frame) for frame in frames[1:]] == [INLINE_BODY_BYTES, 50_000]
    assert len(frames[0]) < 100


def test_a_body_over_the_frame_limit_is_refused_before_it_is_sent() -> None:
    """Libzmq would cut the connection; the sender hears it first."""
    with pytest.raises(ProtocolError, match="over the frame limit"):
        codec.pack([m.Partial(b"r" * 16, 0, 1, b"x" * (MAX_FRAME_BYTES + 1))])


@given(st.binary(max_size=400), st.sampled_from(CODECS))
def test_any_bytes_decode_or_raise_protocol_error(data: bytes, decoder: tuple[Any, Any]) -> None:
    """Nothing but ProtocolError ever leaves the codec."""
    for frames in ([data], [codec.PREFIX + data], [codec.PREFIX + data, data], [codec.PREFIX + b"\x91" + data]):
        with contextlib.suppress(ProtocolError):
            decoder[0].unpack(frames)


@given(messages, st.data())
def test_a_mutated_message_decodes_or_is_refused(message: Any, data: st.DataObject) -> None:
    """One changed, lost or added byte never raises anything else, and never yields a message of another direction."""
    frame = bytearray(codec.pack([message])[0][0])
    where = data.draw(st.integers(4, len(frame) - 1))
    how = data.draw(st.sampled_from(["set", "cut", "insert"]))
    if how == "set":
        frame[where] = data.draw(st.integers(0, 255))
    elif how == "cut":
        del frame[where:]
    else:
        frame[where:where] = data.draw(st.binary(min_size=1, max_size=9))
    decoder = codec_of(message.__class__)
    union = next(u for c, u in CODECS if c is decoder)
    try:
        unpacked = decoder.unpack([bytes(frame)])
    except ProtocolError:
        return

    assert all(type(one) in union.__args__ for one in unpacked.messages)


@pytest.mark.parametrize("struct", ALL_MESSAGES, ids=lambda s: s.__name__)
def test_every_field_of_a_wrong_type_is_refused(struct: type[Any]) -> None:
    """A float fits no header field: each one, put anywhere, is refused and named."""
    example = smallest(struct)
    tag = struct.__struct_config__.tag
    values = [getattr(example, name) for name in struct.__struct_fields__]
    for index in range(len(values)):
        wrong = [tag, *values]
        wrong[index + 1] = 1.5
        unpacked = codec_of(struct).unpack([codec.PREFIX + msgspec.msgpack.encode([wrong])])
        assert unpacked.messages == []
        assert len(unpacked.bad) == 1


def test_a_bad_message_is_refused_alone() -> None:
    """Its neighbours are served, its rid is found, an unknown command is told from a malformed one."""
    good = msgspec.msgpack.encode(REQUEST)
    bad = msgspec.msgpack.encode([2, b"q" * 16, "bad name!", 1, 0, 0, 0, 0, b""])
    unknown = msgspec.msgpack.encode([77, 1])

    unpacked = codec.FROM_CLIENT.unpack([codec.PREFIX + b"\x94" + good + bad + unknown + good])

    assert unpacked.messages == [REQUEST, REQUEST]
    assert [(b.rid, b.unknown_command) for b in unpacked.bad] == [(b"q" * 16, False), (None, True)]


def test_unknown_trailing_fields_are_ignored() -> None:
    """A minor version may add fields behind ext."""
    longer = [2, *msgspec.structs.astuple(REQUEST), "new", {"a": 1}]

    unpacked = codec.FROM_CLIENT.unpack([codec.PREFIX + msgspec.msgpack.encode([longer])])

    assert unpacked.messages == [REQUEST]
    assert unpacked.bad == []


@pytest.mark.parametrize("numbers", [(2, 1), (1, 1), (0, 1), (1, 3), (1, None)])
def test_frames_are_named_once_and_in_order(numbers: tuple[int, int | None]) -> None:
    """A frame that is named twice, out of order, beyond the end or not at all makes the envelope malformed."""
    bodies = [n if n is not None else b"" for n in numbers]
    items = [[131, b"r" * 16, 0, 1, body] for body in bodies]
    frames = [codec.PREFIX + msgspec.msgpack.encode(items), b"one", b"two"]

    with pytest.raises(ProtocolError):
        codec.TO_CLIENT.unpack(frames)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x91\xdd\xff\xff\xff\xff",
        b"\x91" * 1_000_000,
        b"\x91\x92\x05" + b"\x91" * 500_000,
        b"\x91\x93\x05\x80" + b"\x81\x00" * 250_000,
        b"\xdd\x00\x00\x04\x01" + b"\xc0" * 1025,
        b"\x91\x9b\x02\xc6\xff\xff\xff\xff",
        b"\x91\xdd\x00\x0f\xff\xff" + b"\xc0" * 0xFFFFF,
    ],
    ids=["array", "map", "inner array", "depth", "depth in a message", "depth behind ext", "count", "bin", "nils"],
)
def test_bombs_are_cheap(bomb: bytes) -> None:
    """Claimed sizes and depths cost no more than a few honest envelopes that are as full as the limits allow."""
    honest = codec.pack([m.Request(b"r" * 16, "svc", 1, 0, 0, 0, 0, b"z" * 900)] * MAX_MESSAGES)[0]

    assert cpu_of([(codec.PREFIX + bomb)[:MAX_HEADER_BYTES]]) < 50 * cpu_of(honest)


def cpu_of(frames: list[bytes]) -> float:
    """Measure one decoding in CPU seconds: the best of three."""
    best = float("inf")
    for _ in range(3):
        before = time.process_time()
        with contextlib.suppress(ProtocolError):
            codec.FROM_CLIENT.unpack(frames)
        best = min(best, time.process_time() - before)
    return best


def test_another_major_version_is_told_apart() -> None:
    """The peer's version is reported, so that it can be answered in the one form every version reads."""
    with pytest.raises(ProtocolError) as caught:
        codec.FROM_CLIENT.unpack([b"ZR\x02\x00\x90"])

    assert caught.value.peer_major == 2
    assert codec.read_version_answer(codec.pack_version_answer()) == (1, 1)
    assert codec.read_version_answer([b"ZR\x01\x00\x90"]) is None
