"""What was seen, in a file: a line of JSON for each broker and look, mostly only what had changed; and back again.

Every minute a whole snapshot is written, so that a player can begin there instead of at the start of a long day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

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


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Entry).decode


class Recorder:
    """Writes while in the `with` block."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._known: dict[str, Snapshot] = {}
        self._looks = 0

    def __enter__(self) -> Self:
        self._file.write(json.dumps(_HEAD).encode() + b"\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, sights: Sequence[Sight], at: float) -> None:
        """Write one look; flushed, so that a file is whole however the recording ends."""
        if self._looks % _WHOLE_EVERY == 0:
            self._known.clear()
        self._looks += 1
        for one in sights:
            self._file.write(_encode(self._entry(one, at)) + b"\n")
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


class Recording:
    """A file that was written so, by look. Lines are read when they are shown.

    Raises:
        ZmqrtError: it is no such file, or empty.
    """

    def __init__(self, path: Path) -> None:
        self._looks = list(_looks(path))
        if not self._looks:
            raise ZmqrtError(f"{path}: there is nothing in this recording")
        self._at = -1
        self._sights: dict[str, Sight] = {}

    def __len__(self) -> int:
        return len(self._looks)

    def time_of(self, index: int) -> float:
        """Return when a look was taken, in Unix seconds."""
        return self._looks[index][0]

    def sights(self, index: int) -> list[Sight]:
        """Return what was seen; going on from the look before, or from the last whole one."""
        begin = self._at + 1 if index > self._at else self._whole_before(index)
        if begin != self._at + 1:
            self._sights = {}
        for each in range(begin, index + 1):
            self._apply(each)
        self._at = index
        return list(self._sights.values())

    def _whole_before(self, index: int) -> int:
        whole = (one for one in range(index, 0, -1) if not any(b'"delta":' in line for line in self._looks[one][1]))
        return next(whole, 0)

    def _apply(self, index: int) -> None:
        seen: dict[str, Sight] = {}
        for line in self._looks[index][1]:
            entry = _decode(line)
            before = self._sights.get(entry.endpoint)
            snapshot = entry.snapshot
            if entry.delta is not None and before is not None and before.snapshot is not None:
                snapshot = delta.apply(before.snapshot, entry.delta)
            seen[entry.endpoint] = Sight(endpoint=entry.endpoint, snapshot=snapshot, problem=entry.problem)
        self._sights = seen


def _looks(path: Path) -> Iterator[tuple[float, list[bytes]]]:
    """Group the lines of one look. A last line that was cut off is left out."""
    with path.open("rb") as lines:
        _check_head(lines.readline(), path)
        at, gathered = 0.0, list[bytes]()
        for line in lines:
            if not line.endswith(b"\n"):
                break
            when = _time_of(line, path)
            if gathered and when != at:
                yield at, gathered
                gathered = []
            at = when
            gathered.append(line)
        if gathered:
            yield at, gathered


class _Time(msgspec.Struct):
    at: float


_read_time: Final = msgspec.json.Decoder(_Time).decode


def _time_of(line: bytes, path: Path) -> float:
    try:
        return _read_time(line).at
    except msgspec.DecodeError as error:
        raise ZmqrtError(f"{path}: a line of this recording cannot be read ({error})") from None


def _check_head(line: bytes, path: Path) -> None:
    try:
        head: Any = json.loads(line)
    except ValueError:
        head = None
    if not isinstance(head, dict) or head.get("format") != _HEAD["format"]:
        raise ZmqrtError(f"{path} is no recording of `zmqrt top --record`")
    if head.get("version") != _HEAD["version"]:
        raise ZmqrtError(f"{path} was recorded by another version of zmqrt")
