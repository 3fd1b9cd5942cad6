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


def backoff_s(failures: int, first_s: float, most_s: float) -> float:
    """Say how long to wait after so many failures in a row: twice as long after each, up to the most."""
    return min(most_s, first_s * 2.0 ** min(failures, 30))


class Backoff:
    """Counts failures in a row and says how long to wait after each.

    With `rng` the wait is by chance between nothing and `backoff_s` (full jitter: AWS architecture blog, "Exponential
    Backoff And Jitter"), so that many who failed together do not come back together.
    """

    def __init__(self, rng: random.Random | None, *, first_s: float = 0.05, most_s: float = 5.0) -> None:
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._failures = 0

    def next_delay_s(self) -> float:
        """Count one failure and say how long to wait."""
        most_s = backoff_s(self._failures, self._first_s, self._most_s)
        self._failures += 1
        return most_s if self._rng is None else self._rng.uniform(0, most_s)

    def reset(self) -> None:
        """Start anew after a success."""
        self._failures = 0


class RestartPolicy:
    """Decides when a child process that has ended is started again: later and later, and not for ever.

    What fails to load `load_tries` times, and has never loaded, will not: too small a device, an argument that is
    wrong. A process that has served for `healthy_s` was sound: its end is the first of a new series.
    """

    def __init__(self, backoff: Backoff, *, healthy_s: float, load_tries: int) -> None:
        self.load_tries = load_tries
        self.is_hopeless = False
        """Set it when no further process will do better: the next end is the last."""
        self._backoff = backoff
        self._healthy_s = healthy_s
        self._ends = 0
        self._has_served = False
        self._ready_at: float | None = None

    def ready(self, now: float) -> None:
        """Note that the process has loaded, and serves."""
        self._ready_at, self._has_served = now, True

    def begin_anew(self) -> None:
        """Note that the next process is given less to do: how often this one failed says nothing of it."""
        self._ends = 0

    def ended(self, now: float) -> float | None:
        """Note that the process has ended; return when to start the next one, or None to give it up."""
        if self._ready_at is not None and now - self._ready_at >= self._healthy_s:
            self._backoff.reset()
        self._ready_at = None
        self._ends += 1
        if self.is_hopeless or (not self._has_served and self._ends >= self.load_tries):
            return None
        return now + self._backoff.next_delay_s()
