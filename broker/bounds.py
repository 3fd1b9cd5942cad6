"""Every bound a broker keeps, and the count of bytes that the bound of its memory is about.

The settings fill `Bounds`, tests make it small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..protocol import limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much of everything a broker holds before it says 429."""

    in_flight: int = 100
    """Waiting requests per active node of a service."""
    queue_requests: int = limits.QUEUE_REQUESTS
    queue_bytes: int = limits.QUEUE_BYTES
    held_bytes: int = limits.MAX_HELD_BYTES
    result_cache_bytes: int = 64 << 20
    """Of results kept for clients that ask again: the oldest go first."""
    outstanding: int = limits.MAX_OUTSTANDING
    window_bytes: int = limits.WINDOW_BYTES
    unsent_bytes: int = limits.STREAM_BUFFER_BYTES
    """Unsent bytes of one stream, beyond which its subscriber is too slow."""
    prefix_bytes: int = limits.MAX_RESUME_BYTES
    attempts: int = limits.MAX_ATTEMPTS
    crashes: int = limits.MAX_CRASHES
    sessions: int = limits.MAX_SESSIONS
    node_capacity: int = limits.MAX_HELD
    """Requests one node may have, whatever it claims: a lie costs no more than that."""
    priority: int = 0
    """Of clients that are no admins: what they ask for above it is lowered to it."""
    subscribers: int = 8
    """Sessions that wait for one request: more are a mistake, not a retry."""
    brokers: tuple[str, ...] = ()
    """Endpoints of the other brokers, told to every peer."""


OVERHEAD_BYTES = 1024
"""What a request or a cached result costs beside its bodies: records, table entries, timers (measured 900 to 1,100)."""
CONTROL_RATE = 10.0
"""PING, HELLO, HEARTBEAT … per second and peer: the protocol needs one every 2.5 s."""
CONTROL_BURST = 20.0
QUERY_RATE = 50.0
"""QUERY per second and client: a dashboard asks once a second, a bridge for each /readyz. Beyond it: "later"."""
FORGET_SERVICE_S = 600.0
"""A service that nobody offers is 'unknown' only after this long: until then a client may wait for it to return."""
IDLE_PROBE_S = 60.0
"""A silent session is sent something this often, so that libzmq tells if nobody is there."""


class Holder(Protocol):
    """What keeps bytes alive: a request (body, journal, overhead) or a subscriber that outlives its request."""

    held_bytes: int


class MemoryBudget:
    """The bytes of all that is alive. Only this class writes `held_bytes`, here and in those that hold them.

    So the sum is right by construction: what a holder gives back is what was counted for it. The cache of results
    counts for itself, because it makes room when live requests need it.
    """

    __slots__ = ("held_bytes",)

    def __init__(self) -> None:
        self.held_bytes = 0

    def hold(self, holder: Holder, size: int) -> None:
        """Count bytes that something has begun to keep; a negative size counts what it let go of."""
        holder.held_bytes += size
        self.held_bytes += size

    def release(self, holder: Holder) -> None:
        """Count out everything that something has kept."""
        self.held_bytes -= holder.held_bytes
        holder.held_bytes = 0
