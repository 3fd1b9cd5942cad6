"""Envelopes: frames of bytes on one side, typed messages on the other. No socket, no clock.

    F0 = "ZR" | major version | flags 00 | MessagePack array of messages
    F1 .. F8 (optional) = large bodies

Inside the cores a body is always `bytes`. Only here does it exist as "the integer that names a frame": bodies of 32 KiB
and more leave as a frame of their own (`pack`) and come back from it (`Codec.unpack`).

Decoding has a fast path, one typed call for the whole batch. Only when that fails is the batch taken apart, so that a
bad message is refused alone and its neighbours are served (semantics: one strike per envelope).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Generic, TypeVar, cast

import msgspec
from msgspec import Meta

from . import messages as m
from .errors import ProtocolError
from .limits import (
    INLINE_BODY_BYTES,
    MAX_ENVELOPE_BYTES,
    MAX_FRAME_BYTES,
    MAX_HEADER_BYTES,
    MAX_LARGE_BODIES,
    MAX_MESSAGES,
)

MAGIC: Final = b"ZR"
PREFIX: Final = MAGIC + bytes([m.VERSION, 0])
_VERSION_PREFIX: Final = MAGIC + b"\x00\x00"
_BODY_FIELDS: Final = ("body", "resume")
_HEAD_BYTES: Final = 16
"""Room for what begins a header: the prefix and the head of the array."""

T = TypeVar("T", bound=m.Message)
Frames = list[bytes]


class BadMessage(msgspec.Struct, frozen=True):
    """A message of an envelope that could not be read: why, and its rid where that much was readable."""

    why: str
    rid: bytes | None = None
    unknown_command: bool = False


class Unpacked(msgspec.Struct, Generic[T], frozen=True):
    """What an envelope held."""

    messages: list[T]
    bad: list[BadMessage] = []


# --- out -------------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()


def pack(messages: Sequence[m.Message]) -> list[Frames]:
    """Pack messages for one peer into as few envelopes as the limits allow (nearly always one).

    Raises:
        ProtocolError: one of them is larger than may be, or holds what MessagePack cannot carry; nothing is packed.
            `split_packable` tells which.
    """
    try:
        return _pack(messages)
    except (OverflowError, UnicodeError, TypeError) as error:
        raise ProtocolError(f"a message cannot be encoded: {error}") from error


def split_packable(messages: Sequence[T]) -> tuple[list[T], list[tuple[T, str]]]:
    """Tell apart what can be packed and, with the reason, what cannot."""
    good: list[T] = []
    bad: list[tuple[T, str]] = []
    for message in messages:
        try:
            pack([message])
        except ProtocolError as error:
            bad.append((message, str(error)))
        else:
            good.append(message)
    return good, bad


def _pack(messages: Sequence[m.Message]) -> list[Frames]:
    if len(messages) > MAX_MESSAGES:
        starts = range(0, len(messages), MAX_MESSAGES)
        return [frames for start in starts for frames in _pack(messages[start : start + MAX_MESSAGES])]
    header = _encoder.encode(messages)
    if len(header) < INLINE_BODY_BYTES:  # then no body can be large: no need to look at each
        return [[PREFIX + header]]
    if len(header) <= MAX_HEADER_BYTES and not any(map(_has_large_body, messages)):
        return [[PREFIX + header]]
    return _pack_in_parts(messages)


def _has_large_body(message: m.Message) -> bool:
    """Look at one message; loops over `_BODY_FIELDS` would cost five times as much."""
    return (
        len(getattr(message, "body", b"")) >= INLINE_BODY_BYTES
        or len(getattr(message, "resume", b"")) >= INLINE_BODY_BYTES
    )


def _pack_in_parts(messages: Sequence[m.Message]) -> list[Frames]:
    envelopes: list[Frames] = []
    header: list[bytes] = []
    header_bytes = 0
    large: Frames = []
    for message in messages:
        item, bodies = _split_bodies(message, len(large))
        full = (
            len(header) == MAX_MESSAGES
            or header_bytes + len(item) > MAX_HEADER_BYTES - _HEAD_BYTES
            or len(large) + len(bodies) > MAX_LARGE_BODIES
            or (large and bodies and sum(map(len, large)) + sum(map(len, bodies)) > MAX_ENVELOPE_BYTES // 2)
        )
        if full:
            envelopes.append(_close(header, large))
            header, header_bytes, large = [], 0, []
            item, bodies = _split_bodies(message, 0)
        header.append(item)
        header_bytes += len(item)
        large += bodies
    if header:
        envelopes.append(_close(header, large))
    return envelopes


def _split_bodies(message: m.Message, frames_before: int) -> tuple[bytes, Frames]:
    """Encode one message; its large bodies become frame numbers counted on from `frames_before`."""
    large: Frames = []
    fields: list[Any] = [message.__struct_config__.tag]
    for name in message.__struct_fields__:
        value = getattr(message, name)
        if name in _BODY_FIELDS and len(value) >= INLINE_BODY_BYTES:
            if len(value) > MAX_FRAME_BYTES:
                raise ProtocolError(f"a body of {len(value)} bytes is over the frame limit of {MAX_FRAME_BYTES}")
            large.append(value)
            value = frames_before + len(large)
        fields.append(value)
    item = _encoder.encode(fields) if large else _encoder.encode(message)
    if len(item) > MAX_HEADER_BYTES - _HEAD_BYTES:
        raise ProtocolError(f"a message of {len(item)} bytes beside its body is over the limit of {MAX_HEADER_BYTES}")
    return item, large


def _close(items: list[bytes], large: Frames) -> Frames:
    count = len(items)
    head = bytes([0x90 | count]) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return [b"".join((PREFIX, head, *items)), *large]


def pack_version_answer() -> Frames:
    """Answer a peer of another major version, in the one form that every version can parse."""
    return [_VERSION_PREFIX + _encoder.encode([[426, m.VERSION, m.VERSION]])]


# --- in --------------------------------------------------------------------------------------------------------------


class Codec(Generic[T]):
    """Decoder of one direction: knows the messages that its receiver takes, and refuses all others."""

    def __init__(self, union: Any) -> None:  # noqa: ANN401 - a union is a form, not a type
        self._union = union
        self._batch = cast(
            "msgspec.msgpack.Decoder[list[T]]",
            msgspec.msgpack.Decoder(Annotated[list[union], Meta(max_length=MAX_MESSAGES)]),
        )
        self._one = cast("msgspec.msgpack.Decoder[T]", msgspec.msgpack.Decoder(union))
        self._commands = frozenset(int(struct.__struct_config__.tag) for struct in union.__args__)

    def unpack(self, frames: Sequence[bytes | memoryview]) -> Unpacked[T]:
        """Read one envelope (without the routing id).

        Returns:
            The messages in order, and what could not be read of it.

        Raises:
            ProtocolError: the envelope as a whole is not ZRT/1; nothing in it can be used.
        """
        if len(frames) == 1 and frames[0][:4] == PREFIX and len(frames[0]) <= MAX_HEADER_BYTES:
            try:
                return Unpacked(self._batch.decode(memoryview(frames[0])[4:]))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass  # take it apart below
        return self._take_apart(_check_envelope(frames), frames[1:])

    def _take_apart(self, header: memoryview, large: Sequence[bytes | memoryview]) -> Unpacked[T]:
        try:
            items = _raw_items.decode(header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"the header is not an array of messages: {error}") from error
        good: list[T] = []
        bad: list[BadMessage] = []
        bodies = _Bodies(large)
        for item in items:
            try:
                good.append(self._read(item, bodies))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ProtocolError) as error:
                bad.append(self._describe(item, error))
        if not bodies.all_used():
            raise ProtocolError("a frame of the envelope belongs to no message")
        return Unpacked(good, bad)

    def _read(self, item: msgspec.Raw, bodies: _Bodies) -> T:
        if not bodies.any:
            return self._one.decode(item)
        values = _fields.decode(item)
        if not values:
            raise ProtocolError("a message is an empty array")
        for index in _BODY_INDEX.get(values[0], ()) if type(values[0]) is int else ():
            if index < len(values) and type(values[index]) is int:
                values[index] = bodies.take(values[index])
        return cast("T", msgspec.convert(values, self._union))

    def _describe(self, item: msgspec.Raw, error: Exception) -> BadMessage:
        """Say what is wrong with a message, and find its rid if it is a REQUEST or CANCEL that far."""
        try:
            fields = _fields.decode(item)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return BadMessage(str(error))
        command = fields[0] if fields and type(fields[0]) is int else None
        if command is not None and command not in self._commands:
            return BadMessage(f"unknown command {command}", unknown_command=True)
        has_rid = command in _RID_COMMANDS and len(fields) > 1 and isinstance(fields[1], bytes) and len(fields[1]) == 16
        return BadMessage(str(error), fields[1] if has_rid else None)


class _Bodies:
    """The frames F1..F8 of an envelope; each is named exactly once, in ascending order."""

    def __init__(self, frames: Sequence[bytes | memoryview]) -> None:
        self._frames = frames
        self._next = 1
        self.any = bool(frames)

    def take(self, number: int) -> bytes:
        if number != self._next or number > len(self._frames):
            raise ProtocolError(f"a message names frame {number} where frame {self._next} is due")
        self._next += 1
        return bytes(self._frames[number - 1])

    def all_used(self) -> bool:
        return self._next == len(self._frames) + 1


def _check_envelope(frames: Sequence[bytes | memoryview]) -> memoryview:
    if not 1 <= len(frames) <= 1 + MAX_LARGE_BODIES:
        raise ProtocolError(f"an envelope has 1 to {1 + MAX_LARGE_BODIES} frames, not {len(frames)}")
    header = memoryview(frames[0])
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(f"the header has {len(header)} bytes, over the limit of {MAX_HEADER_BYTES}")
    if bytes(header[:2]) != MAGIC:
        raise ProtocolError("not ZRT: the first frame does not begin with ZR", is_foreign=True)
    if bytes(header[:4]) != PREFIX:
        major = header[2] if len(header) > 2 else None
        raise ProtocolError(f"this side speaks ZRT/{m.VERSION}, the envelope is ZRT/{major}", peer_major=major)
    if len(frames) > 1 and sum(map(len, frames)) > MAX_ENVELOPE_BYTES:
        raise ProtocolError(f"the envelope is over the limit of {MAX_ENVELOPE_BYTES} bytes")
    return header[4:]


def _body_indexes() -> dict[int, tuple[int, ...]]:
    table: dict[int, tuple[int, ...]] = {}
    for union in (m.FromClient, m.ToClient, m.FromWorker, m.ToWorker):
        for struct in union.__args__:
            where = tuple(1 + i for i, name in enumerate(struct.__struct_fields__) if name in _BODY_FIELDS)
            if where:
                table[struct.__struct_config__.tag] = where
    return table


_BODY_INDEX: Final = _body_indexes()
_RID_COMMANDS: Final = frozenset({2, 3})
_fields: Final[msgspec.msgpack.Decoder[list[Any]]] = msgspec.msgpack.Decoder(list[Any])
_raw_items: Final = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], Meta(max_length=MAX_MESSAGES)])

FROM_CLIENT: Final[Codec[m.FromClient]] = Codec(m.FromClient)
TO_CLIENT: Final[Codec[m.ToClient]] = Codec(m.ToClient)
FROM_WORKER: Final[Codec[m.FromWorker]] = Codec(m.FromWorker)
TO_WORKER: Final[Codec[m.ToWorker]] = Codec(m.ToWorker)


def read_version_answer(frames: Sequence[bytes | memoryview]) -> tuple[int, int] | None:
    """Return (lowest, highest) major version of a peer that refused ours, or None if the frames say no such thing."""
    if not frames or bytes(frames[0][:4]) != _VERSION_PREFIX:
        return None
    try:
        answer = msgspec.msgpack.decode(frames[0][4:], type=list[tuple[int, int, int]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return (answer[0][1], answer[0][2]) if answer and answer[0][0] == 426 else None
