"""When to ask again after "not now": as long as the caller wants that, there is time, and it can do no harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..protocol.timing import backoff_s
from .requests import ClientRequest

if TYPE_CHECKING:
    import random

REFUSED: Final = frozenset({429, 503})
_FIRST_SPREAD_S: Final = 0.05
_MOST_SPREAD_S: Final = 1.0
_LEAST_PAUSE_S: Final = 0.1


def pause_s(request: ClientRequest, retry_after_s: float, rng: random.Random) -> float:
    """Wait as told, and a little more by chance, or all who were refused together would come back together."""
    spread_s = backoff_s(request.refusals, _FIRST_SPREAD_S, _MOST_SPREAD_S)
    return retry_after_s * rng.uniform(1.0, 1.25) + rng.uniform(0.0, spread_s)


def before_deadline(request: ClientRequest, wake_at: float, now: float) -> float:
    """Bring the next try of a request that was accepted once to half of the time that is left, if it would be too late.

    When the queue will have emptied is only a broker's guess, and this one was promised an end.
    """
    if not request.was_accepted or wake_at < request.due_at:
        return wake_at
    return now + max(_LEAST_PAUSE_S, (request.due_at - now) / 2)


def may_retry(request: ClientRequest, wake_at: float, *, is_free: bool = False) -> bool:
    """Say whether to ask again at `wake_at`; a free try (the broker is leaving, another is there) is not counted."""
    retries = request.call.retries
    is_wanted = is_free or retries is None or request.refusals < retries
    return is_wanted and wake_at < request.due_at
