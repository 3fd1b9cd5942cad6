"""What was seen, in a file: a line of JSON for each broker and look, mostly only what had changed; and back again.

Every minute a whole snapshot is written, so that a player can begin there instead of at the start of a long day. A
player keeps in mind where each look stands, and reads it when it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec

from ...protocol import delta
from ...protocol.errors import ZmqrtError
from ...protocol.snapshot import Snapshot
from .fleet import Sight

_HEAD: Final = {"format": "zmqrt top", "version": 1}
_WHOLE_EVERY: Final = 60


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: a broker at a time (Unix seconds), whole, as a change, or unreachable."""

    at: float
    endpoint: str
    snapshot: Snapshot | None = None
    delta: delta.Delta | None = None
    problem: str = ""


class _Outline(msgspec.Struct):
    """As much of a line as is needed to find it again."""

    at: float
    endpoint: str
    delta: msgspec.Raw = msgspec.Raw()


class _Head(msgspec.Struct):
    format: str = ""
    version: int = 0


_read_head: Final = msgspec.json.Decoder(_Head).decode
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Entry).decode
_outline: Final = msgspec.json.Decoder(_Outline).decode


class Recorder:
    """Writes while in the `with` block. An older file is not overwritten.

    Raises:
        ZmqrtError: there is such a file already.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.is_file() and path.stat().st_size:
            raise ZmqrtError(f"{path} exists already; remove it, or record into another file")
        self._file: BinaryIO = path.open("wb")
        self._known: dict[str, Snapshot] = {}
        self._looks = 0
        self._at = 0.0

    def __enter__(self) -> Self:
        self._file.write(json.dumps(_HEAD).encode() + b"\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, sights: Sequence[Sight], at: float) -> None:
        """Write one look; flushed, so that a file is whole however the recording ends."""
        self._at = max(self._at, at)  # a clock that is set back must not put the looks out of order
        if self._looks % _WHOLE_EVERY == 0:
            self._known.clear()
        self._looks += 1
        for one in sights:
            self._file.write(_encode(self._entry(one, self._at)) + b"\n")
        self._file.flush()

    def _entry(self, one: Sight, at: float) -> Entry:
        now, known = one.snapshot, self._known.get(one.endpoint)
        if now is None:
            self._known.pop(one.endpoint, None)
            return Entry(at=at, endpoint=one.endpoint, problem=one.problem)
        self._known[one.endpoint] = now
        if known is None or known.broker_epoch != now.broker_epoch:
            return Entry(at=at, endpoint=one.endpoint, snapshot=now)
        return Entry(at=at, endpoint=one.endpoint, delta=delta.difference(known, now))


@dataclass(slots=True)
class _Look:
    """Where the lines of one look stand in the file."""

    at: float
    offset: int
    size: int = 0
    is_whole: bool = True


class Recording:
    """A file that was written so, by look.

    Raises:
        ZmqrtError: it is no such file, or empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        try:
            self._looks = list(self._find())
            if not self._looks:
                raise ZmqrtError(f"{path}: there is nothing in this recording")
        except BaseException:
            self.close()
            raise
        self._at = -1
        self._sights: dict[str, Sight] = {}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        return len(self._looks)

    def time_of(self, index: int) -> float:
        """Return when a look was taken, in Unix seconds."""
        return self._looks[index].at

    def sights(self, index: int) -> list[Sight]:
        """Return what was seen; going on from the look before, or from the last whole one.

        A line that cannot be read (of another release, or damaged) is a broker of which just that is told.
        """
        begin = self._at + 1
        if index <= self._at or index - self._at > _WHOLE_EVERY:
            begin = next((one for one in range(index, 0, -1) if self._looks[one].is_whole), 0)
            self._sights = {}
        for each in range(begin, index + 1):
            self._apply(self._looks[each])
        self._at = index
        return list(self._sights.values())

    def _apply(self, look: _Look) -> None:
        self._file.seek(look.offset)
        seen: dict[str, Sight] = {}
        for line in self._file.read(look.size).splitlines():
            endpoint = _outline(line).endpoint
            try:
                seen[endpoint] = self._read(line)
            except (msgspec.DecodeError, ValueError) as error:
                seen[endpoint] = Sight(endpoint=endpoint, problem=f"this part cannot be read: {error}")
        self._sights = seen

    def _read(self, line: bytes) -> Sight:
        entry = _decode(line)
        snapshot = entry.snapshot
        if entry.delta is not None:
            before = self._sights.get(entry.endpoint)
            if before is None or before.snapshot is None:
                raise ValueError("what it goes on from is missing")
            snapshot = delta.apply(before.snapshot, entry.delta)
        return Sight(endpoint=entry.endpoint, snapshot=snapshot, problem=entry.problem)

    def _find(self) -> Iterator[_Look]:
        """Find the lines of each look. A last line that was cut off is left out."""
        self._check_head(self._file.readline())
        look: _Look | None = None
        offset = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            outline = self._outline_of(line)
            if look is None or outline.at != look.at:
                if look is not None:
                    yield look
                look = _Look(outline.at, offset)
            look.size += len(line)
            look.is_whole = look.is_whole and not bytes(outline.delta)
            offset += len(line)
        if look is not None:
            yield look

    def _outline_of(self, line: bytes) -> _Outline:
        try:
            return _outline(line)
        except msgspec.DecodeError as error:
            raise ZmqrtError(f"{self._path}: a line of this recording cannot be read ({error})") from None

    def _check_head(self, line: bytes) -> None:
        try:
            head = _read_head(line)
        except msgspec.DecodeError:
            head = _Head()
        if head.format != _HEAD["format"]:
            raise ZmqrtError(f"{self._path} is no recording of `zmqrt top --record`")
        if head.version != _HEAD["version"]:
            raise ZmqrtError(f"{self._path} was recorded by another version of zmqrt")
