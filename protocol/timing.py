"""Timers of ZRT/1 as plain arithmetic: who counts as silent when, and how long to wait before the next try.

Pure: seconds come in as `now`, chance as a `random.Random`. The defaults are those of the historic gateway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All times of a broker in seconds; everything not given follows from the three that are."""

    heartbeat_s: float = 5.0
    eviction_s: float = 10.0
    request_timeout_s: float = 30.0
    lost_grace_s: float = 1.0
    """TCP gone: a worker may come back and claim its leases this long; so kill -9 costs about this."""
    ack_delay_s: float = 0.1
    """ACCEPTED waits this long for a better answer (like a delayed TCP ACK)."""
    client_ack_s: float = 2.5
    """A client that hears nothing of a request this long PINGs."""
    reattach_grace_s: float = 5.0
    """A client's requests outlive its connection this long."""

    @property
    def heartbeat_send_s(self) -> float:
        """Half the interval: with a whole one, a single lost beat would evict."""
        return self.heartbeat_s / 2

    @property
    def suspect_s(self) -> float:
        """Silence after which a node gets no new work."""
        return self.heartbeat_s + min(0.5, self.heartbeat_s / 10)

    @property
    def remove_s(self) -> float:
        """Silence after which an evicted node is forgotten."""
        return 2 * self.eviction_s

    @property
    def dedupe_s(self) -> float:
        """How long outcomes are kept for clients that ask again."""
        return 2 * self.request_timeout_s

    @property
    def client_gone_s(self) -> float:
        """Silence of a client with outstanding requests after which it counts as gone."""
        return 2 * self.eviction_s

    @property
    def drain_s(self) -> float:
        """Time to finish what runs."""
        return self.request_timeout_s


class Backoff:
    """Exponential backoff with full jitter (AWS architecture blog, "Exponential Backoff And Jitter")."""

    def __init__(self, rng: random.Random, *, first_s: float = 0.05, most_s: float = 5.0) -> None:
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0

    def next_delay_s(self) -> float:
        """Count one failure and say how long to wait."""
        ceiling = min(self._most_s, self._first_s * 2 ** min(self._failures, 30))
        self._failures += 1
        return self._rng.uniform(0, ceiling)

    def reset(self) -> None:
        """Start anew after a success."""
        self._failures = 0
