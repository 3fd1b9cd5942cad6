"""How often a peer may ask, and how often it may err before it is muted.

Strikes are counted by connection, whether it has a session or not. Both tables are bounded: an entry goes when its time
is up, and the oldest goes when there are too many.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from ..protocol.limits import MAX_STRIKES, STRIKE_SILENCE_S, STRIKE_WINDOW_S

V = TypeVar("V")
_MOST: Final = 20_000
"""Connections remembered, as many as there may be sessions."""


class TokenBucket(msgspec.Struct):
    """Allows `rate` a second, and `burst` at once."""

    rate: float
    burst: float
    tokens: float
    filled_at: float

    def take(self, now: float) -> bool:
        """Use one token; False if there is none."""
        self.tokens = min(self.burst, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def full_bucket(rate: float, burst: float, now: float) -> TokenBucket:
    """Make a bucket that nothing was taken from."""
    return TokenBucket(rate, burst, burst, now)


class Strikes:
    """Counts malformed envelopes, and floods, per connection of one socket, and mutes a peer that sends too many."""

    __slots__ = ("_counts", "_muted")

    def __init__(self) -> None:
        self._counts: dict[bytes, tuple[float, int]] = {}  # peer -> (first strike of the window, how many)
        self._muted: dict[bytes, float] = {}  # peer -> until when

    def __len__(self) -> int:
        return len(self._counts) + len(self._muted)

    def add(self, peer: bytes, now: float) -> bool:
        """Count one strike; True if it is the one that closes the session."""
        since, count = self._counts.pop(peer, (now, 0))
        if now - since > STRIKE_WINDOW_S:
            since, count = now, 0
        if count + 1 >= MAX_STRIKES:
            _insert(self._muted, peer, now + STRIKE_SILENCE_S)
            return True
        _insert(self._counts, peer, (since, count + 1))
        return False

    def is_muted(self, peer: bytes, now: float) -> bool:
        """Say whether a peer is to be ignored."""
        if not self._muted:
            return False
        until = self._muted.get(peer)
        if until is None:
            return False
        if until > now:
            return True
        del self._muted[peer]
        return False

    def forget(self, peer: bytes) -> None:
        """Drop what is known of a peer that has gone: its id will not return."""
        self._counts.pop(peer, None)
        self._muted.pop(peer, None)

    def expire(self, now: float) -> None:
        """Drop what is over; entries are in the order of their time."""
        while self._counts and next(iter(self._counts.values()))[0] + STRIKE_WINDOW_S < now:
            del self._counts[next(iter(self._counts))]
        while self._muted and next(iter(self._muted.values())) <= now:
            del self._muted[next(iter(self._muted))]


def _insert(table: dict[bytes, V], peer: bytes, value: V) -> None:
    table.pop(peer, None)
    table[peer] = value
    if len(table) > _MOST:
        del table[next(iter(table))]
