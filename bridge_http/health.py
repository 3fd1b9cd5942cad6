"""How the fleet is: for probes, in words that a person understands too, and as the broker's snapshot for the page.

Probes are answered in constant time and without a key.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..client.rates import Rates, TokenRates
from ..protocol.errors import ConnectError
from ..protocol.snapshot import NodeStatus, Snapshot, for_everybody
from .errors import json_response, refusal
from .key_ring import KeyRing
from .snapshot_cache import SnapshotCache

_PHASES: Final = (
    *("failed", "draining", "starting", "restarting", "downloading", "converting", "loading", "warming", "ready"),
)
"""Those that come later are nearer to serving."""
_OLD_KEYS: Final = "the file of API keys cannot be read as it is now, so older keys count: see the log of this bridge"
_NEVER_STORED: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
State = Literal["ok", "starting", "no_nodes", "draining", "broker_unreachable"]


class FleetHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
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


class FleetStatus(Snapshot, frozen=True, kw_only=True):
    """Body of /status: the snapshot, and two things that the bridge knows about it.

    Attributes:
        age_s: How long ago the broker gave it; more than a few seconds: it does not answer now.
        tokens_per_s: By worker_uuid and device id, between a node's last two heartbeats; what is not known is absent.
    """

    age_s: float
    tokens_per_s: Rates


async def ready(snapshots: SnapshotCache, ring: KeyRing, _request: Request) -> Response:
    """Answer /readyz and /health: whether requests are served now."""
    ring.look_on()
    health = await _health(snapshots)
    if ring.problem:  # which names a file, and so stands in the log alone: nobody needs a key to ask here
        health = msgspec.structs.replace(health, detail=f"{health.detail}; {_OLD_KEYS}")
    return _probe(health)


async def started(snapshots: SnapshotCache, _request: Request) -> Response:
    """Answer /startupz: whether a broker has answered since the bridge began, whatever it said."""
    health = await _health(snapshots)
    return _probe(msgspec.structs.replace(health, ready=True) if snapshots.has_answered else health)


async def alive(_request: Request) -> Response:
    """Answer /livez: the process lives, whatever the fleet does."""
    return json_response(200, Alive())


async def status(snapshots: SnapshotCache, rates: TokenRates, request: Request) -> Response:
    """Answer GET /status: 200 with a FleetStatus, or 503 while the broker is unreachable."""
    latest = await snapshots.look()
    if latest.snapshot is None:
        response = refusal(ConnectError(latest.problem), "/status", request.state.request_id)
        response.headers.update(_NEVER_STORED)
        return response
    known = msgspec.structs.asdict(for_everybody(latest.snapshot))  # tenants share this bridge, not their requests
    body = FleetStatus(**known, age_s=round(latest.age_s, 3), tokens_per_s=rates.fold(latest.snapshot))
    return json_response(200, body, _NEVER_STORED)


async def _health(snapshots: SnapshotCache) -> FleetHealth:
    latest = await snapshots.look()
    return judge(latest.snapshot, latest.problem)


def _probe(health: FleetHealth) -> Response:
    return json_response(200, health) if health.ready else json_response(503, health, {"retry-after": "1"})


def judge(snapshot: Snapshot | None, problem: str) -> FleetHealth:
    """Judge what a snapshot means for whoever wants to send a request now."""
    if snapshot is None:
        return FleetHealth(status="broker_unreachable", ready=False, detail=problem)
    state, detail = _state(snapshot)
    furthest = _furthest(snapshot)
    return FleetHealth(
        status=state,
        ready=state == "ok",
        detail=detail,
        phase=furthest.phase if furthest else "",
        percent=furthest.percent if furthest else 0,
        elapsed_s=round(furthest.elapsed_s, 1) if furthest else 0.0,
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
    ranked = (node for node in snapshot.nodes if node.phase in _PHASES)
    return max(ranked, key=lambda node: (_PHASES.index(node.phase), node.percent), default=None)
