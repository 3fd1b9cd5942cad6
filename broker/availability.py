"""Why a service cannot be had now, and what to say about it: unknown, not yet there, or gone a moment ago.

A request may wait for a service that was there a moment ago, or (the broker itself being new) may be about to appear:
nodes come back within seconds of a restart, and a refusal would lose what a client has just sent again.
"""

from __future__ import annotations

import math

from ..protocol.errors import ErrorKind
from ..protocol.messages import Heartbeat
from .nodes import NodeState
from .services import Service
from .state import BrokerState

_LISTED_CHARS = 300
_LONGEST_GUESS_S = 60.0
_FIRST_GUESS_S = 5.0
_NOT_COMING = ("ready", "failed", "draining")
_GONE = (NodeState.EVICTED, NodeState.REMOVED, NodeState.DRAINING)


def wait_until(state: BrokerState, service: Service | None) -> float:
    """Return until when a request may wait for a service without a healthy node; not after `now`: refuse it."""
    eviction_s, moment_s = state.timing.eviction_s, state.timing.lost_grace_s
    if service is not None and service.spec is not None:
        newest = max((node.heard_at for node in service.offers if node.beat is None), default=-math.inf)
        return max(service.unhealthy_since + eviction_s, newest + moment_s)  # one that has not yet said how it is
    if is_anything_known(state):
        return state.started_at + moment_s
    return state.started_at + eviction_s


def why_absent(state: BrokerState, name: str, now: float) -> tuple[ErrorKind, str, float]:
    """Return (kind, sentence, when to try again in seconds)."""
    service = state.services.get(name)
    if service is not None and service.spec is not None:
        starting = [node for node in service.offers if node.phase not in _NOT_COMING]
        if starting:
            node = max(starting, key=lambda one: one.beat.percent if one.beat else 0)
            percent = node.beat.percent if node.beat else 0
            return (
                ErrorKind.STARTING,
                f"model {name!r} is not ready: {node.phase}, {percent} %",
                _time_left_s(node.beat),
            )
        return ErrorKind.NO_WORKER, f"model {name!r} has no healthy worker; see 'zmqrt status'", 1.0
    if is_anything_known(state):
        listed = ", ".join(sorted(other.name for other in choices(state, now))) or "none at the moment"
        listed = listed if len(listed) <= _LISTED_CHARS else listed[:_LISTED_CHARS] + " …"
        return ErrorKind.NOT_FOUND, f"no model {name!r} here; known: {listed}", 0.0
    return ErrorKind.NO_WORKER, "no worker has registered with this broker; start one with 'zmqrt-worker'", 1.0


def choices(state: BrokerState, now: float) -> set[Service]:
    """Return the services that there are, for lists and for requests that name none: for each task the best it has.

    Those that live, or were lost a moment ago and are due back; without any, those whose last node has just left; and
    else those that load. So neither what is gone stands beside what serves, nor what has never come up.
    """
    ranked: dict[str, dict[int, set[Service]]] = {}
    for service in state.services.values():
        rank = _rank(state, service, now)
        if service.spec is not None and rank is not None:
            ranked.setdefault(service.spec.task, {}).setdefault(rank, set()).add(service)
    return {service for ranks in ranked.values() for service in ranks[min(ranks)]}


def _rank(state: BrokerState, service: Service, now: float) -> int | None:
    is_recent = now < service.unhealthy_since + state.timing.eviction_s
    if service.healthy or (is_recent and service.is_due_back):
        return 0
    if is_recent:
        return 1
    return 2 if is_coming(service) else None


def is_coming(service: Service) -> bool:
    """Say whether a node loads it."""
    return any(node.phase not in _NOT_COMING and node.state not in _GONE for node in service.offers)


def is_anything_known(state: BrokerState) -> bool:
    """Say whether any node has registered yet."""
    return any(service.spec is not None for service in state.services.values())


def _time_left_s(beat: Heartbeat | None) -> float:
    """Guess from how far it came in what time."""
    if beat is None or not beat.percent:
        return _FIRST_GUESS_S
    return min(_LONGEST_GUESS_S, max(0.5, beat.elapsed_ms / 1000 * (100 - beat.percent) / beat.percent))
