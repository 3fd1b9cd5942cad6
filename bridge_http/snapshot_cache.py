"""Keeps the broker's last snapshot for a moment, so that any number of probes and pages cost the broker one question a
second, and none at all when nobody looks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ..protocol.errors import ConnectError, ZmqrtError
from ..protocol.snapshot import Snapshot

FRESH_S: Final = 1.0
"""Older than this, a snapshot is asked for anew: probes come every few seconds."""
PATIENCE_S: Final = 1.0
"""A probe is answered within this time; kubelet and most load balancers give up after one second or more."""
_SILENT: Final = "the broker has not answered yet"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LatestSnapshot:
    """The newest snapshot that is to be had and its age; None while the broker is unreachable, and why."""

    snapshot: Snapshot | None
    problem: str
    age_s: float


class SnapshotCache:
    """Asks for a snapshot when somebody wants to know and the last one is old."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[Snapshot]],
        clock: Callable[[], float] = time.monotonic,
        *,
        brokers: Sequence[str] = (),
    ) -> None:
        self._ask = ask
        self._brokers = brokers
        self._clock = clock
        self._snapshot: Snapshot | None = None
        self._problem = ""
        self._asked_at = self._began_at = -FRESH_S
        self._asking: asyncio.Task[None] | None = None
        self.has_answered = False
        """Whether a broker has answered, now or before."""

    async def look(self, *, news: bool = False) -> LatestSnapshot:
        """Return the newest snapshot that is to be had within PATIENCE_S: an old one if the broker takes longer.

        One that says that requests are served is good for FRESH_S, unless `news` are wanted. Any other one is not given
        to whoever came after it was asked for: a node may have become ready since.
        """
        came_at = self._clock()
        for _ in range(2):  # a question under way was asked before: its answer may be one too old
            if self._asking is None:
                if self._is_good(came_at, news=news):
                    break
                self._began_at = self._clock()
                self._asking = asyncio.create_task(self._refresh())
            _, late = await asyncio.wait({self._asking}, timeout=PATIENCE_S)
            if late:
                break
        return LatestSnapshot(self._snapshot, self._named(self._problem or _SILENT), self._clock() - self._asked_at)

    async def snapshot(self, *, news: bool = False) -> Snapshot:
        """Return the newest snapshot that is to be had within PATIENCE_S. Raises ConnectError."""
        latest = await self.look(news=news)
        if latest.snapshot is None:
            raise ConnectError(latest.problem)
        return latest.snapshot

    @property
    def latest(self) -> Snapshot | None:
        """The last snapshot; None while the broker does not answer, or has not for a while."""
        is_old = self._clock() - self._asked_at > FRESH_S + 2 * PATIENCE_S
        return None if is_old else self._snapshot

    def _named(self, problem: str) -> str:
        """Add which broker is tried, where the problem does not say: a wrong address is seen at once."""
        if not self._brokers or any(broker in problem for broker in self._brokers):
            return problem
        return f"{problem} (trying {', '.join(self._brokers)})"

    def _is_good(self, came_at: float, *, news: bool) -> bool:
        is_served = self._snapshot is not None and self._snapshot.ready
        return self._began_at >= came_at or (is_served and not news and came_at - self._asked_at < FRESH_S)

    async def _refresh(self) -> None:
        try:
            self._snapshot = await self._ask()
            self.has_answered = True
        except ZmqrtError as error:
            self._snapshot, self._problem = None, str(error)
            log.debug("no snapshot: %s", error)
        finally:
            self._asked_at = self._clock()
            self._asking = None
