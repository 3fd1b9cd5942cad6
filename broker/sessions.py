"""Clients as the broker sees them: users, the sessions they open, and how much each session may still be sent.

A session is one connection. A user is the principal its key maps to; ids that clients choose are looked up under the
user and never alone, so that equal ids of two users cannot meet.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .requests import Request, Subscriber
    from .result_cache import CachedResult


class TokenBucket(msgspec.Struct):
    """A token bucket: `rate` a second, `burst` at once."""

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


def bucket(rate: float, burst: float, now: float) -> TokenBucket:
    """Make a full one."""
    return TokenBucket(rate, burst, burst, now)


class User(msgspec.Struct, eq=False):
    """One principal and all that it has here, whatever connection it came by."""

    name: str
    requests: dict[bytes, Request] = {}
    results: dict[bytes, CachedResult] = {}
    sessions: int = 0


class Session(msgspec.Struct, eq=False):
    """One connection of a client.

    Attributes:
        is_open: Whether anything can be sent to it; a lost one stays a while so that its client can come back.
        window_bytes: How much may be sent and not yet consumed.
        send_until: How far `sent_bytes` may go before the window is shut; one message may overshoot it.
        lagging: Readers that wait for the window, in turn.
        shut_at: Since when the window has kept them waiting.
    """

    peer: bytes
    user: User
    client_uuid: bytes
    name: str
    session_id: bytes
    window_bytes: int
    heard_at: float
    control: TokenBucket
    queries: TokenBucket
    put_offs: TokenBucket
    subscribers: dict[bytes, Subscriber] = {}
    is_open: bool = True
    send_until: int = 0
    sent_bytes: int = 0
    consumed_bytes: int = 0
    lagging: OrderedDict[Subscriber, None] = msgspec.field(default_factory=OrderedDict[Any, None])
    shut_at: float | None = None
    lost_at: float = 0.0
    slot: int = 0

    def consume(self, bytes_consumed: int) -> bool:
        """Learn how much was read; more than was sent is not believed. False if that is no news."""
        consumed = min(bytes_consumed, self.sent_bytes)
        if consumed <= self.consumed_bytes:
            return False
        self.consumed_bytes = consumed
        self.send_until = consumed + self.window_bytes
        return True

    def shut(self) -> None:
        """Note that nothing can be sent any more."""
        self.is_open = False
        self.send_until = -1
        self.shut_at = None
