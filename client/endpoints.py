"""Says which broker to try next and when, and explains why none can be used. No socket, no clock.

Order is the order given; after a loss the next one is used, and kept. Each failure in a row doubles the wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..protocol.errors import ConnectError
from ..protocol.failure import Failure
from ..protocol.limits import MAX_BROKERS
from ..protocol.timing import Backoff

if TYPE_CHECKING:
    import random

STEADY_S: Final = 1.0
"""A session that lasted this long was a success; a shorter one (greeted by a broker that is leaving) was none."""


class Endpoints:
    """The brokers of one client."""

    def __init__(self, endpoints: Sequence[str], rng: random.Random) -> None:
        self._names = tuple(endpoints)
        self._last = -1
        self._backoff = Backoff(rng)
        self._failures: dict[str, Failure] = {}
        self._leaving_until: dict[str, float] = {}

    @property
    def count(self) -> int:
        """How many there are to choose from."""
        return len(self._names)

    def learn(self, endpoints: Sequence[str]) -> None:
        """Add the brokers that another one names; those that were configured stay in front."""
        new = [name for name in endpoints if "://" in name and name not in self._names]
        self._names = (*self._names, *new)[:MAX_BROKERS]

    def choose(self, now: float) -> str:
        """Return the endpoint to try: the one after the last, but those that said they are leaving come last."""
        count = len(self._names)
        order = [self._names[(self._last + 1 + i) % count] for i in range(count)]
        staying = [name for name in order if self._leaving_until.get(name, 0.0) <= now]
        chosen = (staying or order)[0]
        self._last = self._names.index(chosen)
        return chosen

    def failed(self, endpoint: str, failure: Failure | None) -> float:
        """Count a failed attempt (its cause may follow); return how long to wait before the next."""
        if failure is not None:
            self._failures[endpoint] = failure
        return self._backoff.next_delay_s()

    def explained(self, endpoint: str, failure: Failure) -> None:
        """Learn the cause of an earlier failure."""
        self._failures[endpoint] = failure

    def welcomed(self, endpoint: str) -> None:
        """Forget earlier causes: a session is open."""
        self._failures.pop(endpoint, None)

    def lost(self, lasted_s: float) -> float:
        """Note that a session ended; return how long to wait before the next attempt."""
        if lasted_s >= STEADY_S:
            self._backoff.reset()
        return self._backoff.next_delay_s()

    def leaving(self, endpoint: str, until: float) -> None:
        """Remember a GOAWAY."""
        self._leaving_until[endpoint] = until

    @property
    def is_hopeless(self) -> bool:
        """Whether each one failed for a reason that will not go away by itself."""
        return all((failure := self._failures.get(name)) is not None and failure.is_final for name in self._names)

    @property
    def is_explained(self) -> bool:
        """Whether it is known of each why it cannot be used."""
        return all(name in self._failures for name in self._names)

    def error(self, waited_s: float) -> ConnectError:
        """Put all causes into one error."""
        causes = [self._failures.get(name) for name in self._names]
        lines = [
            cause.text if cause else f"{name}: no answer within {waited_s:.1f} s"
            for name, cause in zip(self._names, causes, strict=True)
        ]
        text = lines[0] if len(lines) == 1 else "no broker can be used:\n  " + "\n  ".join(lines)
        refused = any(cause is not None and cause.not_authorised for cause in causes)
        return ConnectError(text, endpoint=",".join(self._names), not_authorised=refused)
