"""Whether requests can be served now, in words that a probe and a person both understand.

`judge` is pure. `Watch` keeps the last snapshot for a moment, so that any number of probes and pages cost the broker
one question a second, and none at all when nobody looks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..protocol.errors import ConnectError, ZmqrtError
from ..protocol.snapshot import NodeStatus, Snapshot
from .errors import encode
from .replies import json_response

FRESH_S: Final = 1.0
"""Older than this, a snapshot is asked for anew: probes come every few seconds."""
PATIENCE_S: Final = 1.0
"""A probe is answered within this time; kubelet and most load balancers give up after one second or more."""
_SILENT: Final = "the broker has not answered yet"
State = Literal["ok", "starting", "no_nodes", "draining", "broker_unreachable"]
log = logging.getLogger(__name__)


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Body of /health and /readyz."""

    status: State
    ready: bool
    detail: str
    phase: str = ""
    percent: int = 0
    elapsed_s: float = 0.0
    nodes: int = 0
    devices: int = 0
    running: int = 0
    queued: int = 0
    models: list[str] = []


class Alive(msgspec.Struct, frozen=True):
    """Body of /livez."""

    status: Literal["ok"] = "ok"


def judge(snapshot: Snapshot | None, problem: str = "") -> Health:
    """Say what a snapshot means for whoever wants to send a request now."""
    if snapshot is None:
        return Health(status="broker_unreachable", ready=False, detail=problem or _SILENT)
    status, detail = _state(snapshot)
    slowest = _furthest(snapshot)
    return Health(
        status=status,
        ready=status == "ok",
        detail=detail,
        phase=slowest.phase if slowest else "",
        percent=slowest.percent if slowest else 0,
        elapsed_s=round(slowest.elapsed_s, 1) if slowest else 0.0,
        nodes=len(snapshot.nodes),
        devices=sum(len(node.devices) for node in snapshot.nodes),
        running=snapshot.running,
        queued=snapshot.queued,
        models=[service.service for service in snapshot.services if service.is_listed],
    )


def _state(snapshot: Snapshot) -> tuple[State, str]:
    if snapshot.draining:
        return "draining", "the broker is draining"
    if snapshot.ready:
        return "ok", "requests are served"
    furthest = _furthest(snapshot)
    if furthest is None:
        return "no_nodes", "no node has joined the broker; start one with zmqrt-worker"
    if furthest.phase in ("ready", "draining", "failed"):
        return "no_nodes", f"node {furthest.node_id} is {furthest.phase} ({furthest.health}), and no other one serves"
    return "starting", f"node {furthest.node_id} is {furthest.phase} ({furthest.percent} %)"


def _furthest(snapshot: Snapshot) -> NodeStatus | None:
    """Find the node that will be, or is, ready first."""
    order = ("failed", "draining", "starting", "restarting", "downloading", "converting", "loading", "warming", "ready")
    ranked = (node for node in snapshot.nodes if node.phase in order)
    return max(ranked, key=lambda node: (order.index(node.phase), node.percent), default=None)


@dataclass(frozen=True, slots=True)
class LatestSnapshot:
    """The newest snapshot that is to be had and its age; None while the broker is unreachable, and why."""

    snapshot: Snapshot | None
    problem: str
    age_s: float


class SnapshotCache:
    """Ask for a snapshot when somebody wants to know and the last one is old."""

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
        self._has_seen = False
        self._asked_at = self._began_at = -FRESH_S
        self._asking: asyncio.Task[None] | None = None

    async def health(self) -> Health:
        """Judge the newest snapshot that is to be had within PATIENCE_S."""
        sight = await self.look()
        return judge(sight.snapshot, sight.problem)

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

    def _named(self, problem: str) -> str:
        """Say which broker is tried, where the problem does not: a wrong address is seen at once."""
        if not self._brokers or any(one in problem for one in self._brokers):
            return problem
        return f"{problem} (trying {', '.join(self._brokers)})"

    def _is_good(self, came_at: float, *, news: bool) -> bool:
        is_served = self._snapshot is not None and self._snapshot.ready
        return self._began_at >= came_at or (is_served and not news and came_at - self._asked_at < FRESH_S)

    async def snapshot(self, *, news: bool = False) -> Snapshot:
        """Return the newest snapshot that is to be had within PATIENCE_S. Raises ConnectError."""
        sight = await self.look(news=news)
        if sight.snapshot is None:
            raise ConnectError(sight.problem)
        return sight.snapshot

    @property
    def latest(self) -> Snapshot | None:
        """The last snapshot; None while the broker does not answer, or has not for a while."""
        is_old = self._clock() - self._asked_at > FRESH_S + 2 * PATIENCE_S
        return None if is_old else self._snapshot

    @property
    def has_seen(self) -> bool:
        """Whether a broker has answered, now or before."""
        return self._has_seen

    async def _refresh(self) -> None:
        try:
            self._snapshot = await self._ask()
            self._has_seen = True
        except ZmqrtError as error:
            self._snapshot, self._problem = None, str(error)
            log.debug("no snapshot: %s", error)
        finally:
            self._asked_at = self._clock()
            self._asking = None


class HealthEndpoints:
    """The endpoints that probes ask, in constant time and without a key."""

    def __init__(self, watch: SnapshotCache) -> None:
        self._watch = watch

    async def ready(self, _request: Request) -> Response:
        """Answer /readyz and /health: whether requests are served now."""
        return _probe(await self._watch.health())

    async def started(self, _request: Request) -> Response:
        """Answer /startupz: whether a broker has answered since the bridge began, whatever it said."""
        health = await self._watch.health()
        return _probe(msgspec.structs.replace(health, ready=True) if self._watch.has_seen else health)

    async def alive(self, _request: Request) -> Response:
        """Answer /livez: the process lives, whatever the fleet does."""
        return json_response(200, encode(Alive()))


def _probe(health: Health) -> Response:
    headers = {} if health.ready else {"retry-after": "1"}
    return json_response(200 if health.ready else 503, encode(health), headers)
