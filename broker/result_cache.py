"""Keeps answers for the dedupe window, so that a client that asks again gets the same one and nothing runs twice.

Kept: results, final errors, and the units of a cancelled stream, from which its client may go on. Not kept: errors that
invite another try; that try must run. The oldest go first when time or room is up.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from ..protocol import messages as m
from .journal import Journal

_WHOLE_BODY_BYTES: Final = 256
"""A body this small is its own fingerprint: keeping it is cheaper than a digest."""


class CachedResult(msgspec.Struct, eq=False):
    """How a request ended.

    Attributes:
        owner: The results of its user, by request id.
        message: None for a cancelled stream: there is only its journal to go on from.
    """

    owner: dict[bytes, CachedResult]
    rid: bytes
    service: str
    fingerprint: bytes
    is_stream: bool
    message: m.Final | m.Error | None
    journal: Journal | None
    revision: str | None
    ended_at: float
    held_bytes: int


def fingerprint(body: bytes) -> bytes:
    """Return what tells a body from any other, and is small."""
    return body if len(body) <= _WHOLE_BODY_BYTES else hashlib.sha256(body).digest()


class ResultCache:
    """The results of all users, oldest first."""

    __slots__ = ("_keep_s", "_line", "_most_bytes", "size_bytes")

    def __init__(self, keep_s: float, most_bytes: int) -> None:
        self._keep_s = keep_s
        self._most_bytes = most_bytes
        self._line: deque[CachedResult] = deque()
        self.size_bytes = 0

    def __iter__(self) -> Iterator[CachedResult]:
        return iter(self._line)

    def __len__(self) -> int:
        return len(self._line)

    def add(self, result: CachedResult) -> None:
        """Keep a result; older ones make room."""
        result.owner[result.rid] = result
        self._line.append(result)
        self.size_bytes += result.held_bytes
        while self.size_bytes > self._most_bytes:
            self._drop_oldest()

    def forget(self, result: CachedResult) -> None:
        """Make its request id free again; the record itself goes when its time comes."""
        del result.owner[result.rid]
        result.message = result.journal = None
        self.size_bytes -= result.held_bytes
        result.held_bytes = 0

    def expire(self, now: float) -> None:
        """Drop what is too old."""
        while self._line and self._line[0].ended_at + self._keep_s <= now:
            self._drop_oldest()

    def free(self, wanted_bytes: int) -> None:
        """Drop the oldest until so many bytes are free, or nothing is left."""
        goal = self.size_bytes - wanted_bytes
        while self._line and self.size_bytes > goal:
            self._drop_oldest()

    def next_expiry(self) -> float:
        """Return when the oldest is too old; infinity without any."""
        return self._line[0].ended_at + self._keep_s if self._line else float("inf")

    def _drop_oldest(self) -> None:
        result = self._line.popleft()
        self.size_bytes -= result.held_bytes
        if result.owner.get(result.rid) is result:
            del result.owner[result.rid]
