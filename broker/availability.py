"""Which services a broker knows, how long it waits for one that nobody offers, and what it says about that one.

A request may wait for a service that was there a moment ago, or (the broker itself being new) may be about to appear:
nodes come back within seconds of a restart, and a refusal would lose what a client has just sent again.

A peer can say any number of names. So those that nodes offer are bounded in all, those that only clients have said are
a few, and one that has never answered anything goes as soon as it cannot be waited for. What has served is remembered
for a while, because its numbers are asked for; it makes room when room is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..protocol.errors import ErrorKind
from ..protocol.limits import MAX_AWAITED_SERVICES, MAX_FLEET_SERVICES
from ..protocol.messages import Heartbeat
from ..protocol.sanitize import printable
from .bounds import FORGET_SERVICE_S
from .nodes import Demand, Node, NodeState, Offer
from .requests import Request
from .services import Service
from .state import BrokerState

_LISTED_CHARS = 300
_LONGEST_GUESS_S = 60.0
_FIRST_GUESS_S = 5.0
_NOT_COMING = ("ready", "failed", "draining")
_GONE = (NodeState.EVICTED, NodeState.REMOVED, NodeState.DRAINING)


# --- which there are -------------------------------------------------------------------------------------------------


def learn(state: BrokerState, name: str) -> Service[Request] | None:
    """Return the service that a node offers under a name; None if no more names are taken."""
    service = state.services.get(name)
    if service is None:
        if len(state.services) >= MAX_FLEET_SERVICES and not _make_room(state):
            return None
        service = state.services[name] = Service(name)
    state.departed.pop(service, None)
    state.awaited.pop(service, None)
    return service


def expect(state: BrokerState, name: str, until: float) -> Service[Request] | None:
    """Return the service that a client waits for, though no node has offered it yet; None if too many are."""
    if len(state.awaited) >= MAX_AWAITED_SERVICES or len(state.services) >= MAX_FLEET_SERVICES:
        return None
    service = state.services[name] = Service(name)
    state.awaited[service] = None
    state.service_timers.set(service, until)
    return service


def depart(state: BrokerState, service: Service[Request], now: float, *, may_return: bool) -> None:
    """Note that the last node that offered a service is gone, or (`may_return` False) offers it no more."""
    if not may_return and not service.has_served and not service.is_wanted:
        _drop(state, service)
        return
    state.departed[service] = None
    state.service_timers.set(service, now + state.timing.eviction_s)


def forget(state: BrokerState, service: Service[Request], now: float) -> None:
    """Forget a service that nobody offers, once nothing waits for it and long enough has passed."""
    if service.offers:
        return
    until = service.unhealthy_since + FORGET_SERVICE_S if service.has_served else -math.inf
    if service.is_wanted:
        until = max(until, now + state.timing.eviction_s)
    if now < until:
        state.service_timers.set(service, until)
    else:
        _drop(state, service)


# --- how one that nobody offers is answered --------------------------------------------------------------------------


def wait_until(state: BrokerState, service: Service[Request] | None) -> float:
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
            node = max(starting, key=lambda node: node.beat.percent if node.beat else 0)
            percent = node.beat.percent if node.beat else 0
            return (
                ErrorKind.STARTING,
                f"model {name!r} is not ready: {node.phase}, {percent} %",
                _time_left_s(node.beat),
            )
        return ErrorKind.NO_WORKER, f"model {name!r} has no healthy worker; see 'zmqrt status'", 1.0
    if is_anything_known(state):
        listed = in_words(other.name for other in choices(state, now)) or "none at the moment"
        return ErrorKind.NOT_FOUND, f"no model {name!r} here; known: {listed}", 0.0
    return ErrorKind.NO_WORKER, "no worker has registered with this broker; start one with 'zmqrt-worker'", 1.0


def why_unable(
    state: BrokerState, service: Service[Request], needs: frozenset[str], now: float
) -> tuple[ErrorKind, str, float] | None:
    """Say why a service that is served cannot do what a request needs; None: a node can, or could a moment ago.

    Returns (kind, sentence, when to try again in seconds).
    """
    if service.had(Demand(None, needs), now - state.timing.eviction_s):
        return None
    able = frozenset[str]().union(*(supply.can for supply in service.supplies))
    missing = in_words(needs - able or needs)
    coming = [node for node, offer in service.offers.items() if _comes(node) and _may_be_able(node, offer, needs)]
    if coming:
        node = max(coming, key=lambda node: node.beat.percent if node.beat else 0)
        text = f"{missing}: the node of {service.name!r} that could do this is not ready: {node.phase}"
        return ErrorKind.STARTING, text, _time_left_s(node.beat)
    text = f"{missing}: no node of {service.name!r} can do this; they can do: {in_words(able) or 'nothing more'}"
    return ErrorKind.BAD_REQUEST, text, 0.0


def in_words(names: Iterable[str]) -> str:
    """List names that peers have said, for a sentence."""
    listed = ", ".join(sorted(names))
    return printable(listed if len(listed) <= _LISTED_CHARS else listed[:_LISTED_CHARS] + " …")


def choices(state: BrokerState, now: float) -> set[Service[Request]]:
    """Return the services that there are, for lists and for whoever named another one: for each task the best it has.

    Those that live, or were lost a moment ago and are due back; without any, those whose last node has just left; and
    else those that load. So neither what is gone stands beside what serves, nor what has never come up.
    """
    ranked: dict[str, dict[int, set[Service[Request]]]] = {}
    for service in state.services.values():
        rank = _rank(state, service, now)
        if service.spec is not None and rank is not None:
            ranked.setdefault(service.spec.task, {}).setdefault(rank, set()).add(service)
    return {service for ranks in ranked.values() for service in ranks[min(ranks)]}


def _rank(state: BrokerState, service: Service[Request], now: float) -> int | None:
    is_recent = now < service.unhealthy_since + state.timing.eviction_s
    if service.healthy or (is_recent and service.is_due_back):
        return 0
    if is_recent:
        return 1
    return 2 if is_coming(service) else None


def is_coming(service: Service[Request]) -> bool:
    """Say whether a node loads it."""
    return any(map(_comes, service.offers))


def is_anything_known(state: BrokerState) -> bool:
    """Say whether any node has registered yet."""
    return any(service.spec is not None for service in state.services.values())


def _comes(node: Node) -> bool:
    return node.phase not in _NOT_COMING and node.state not in _GONE


def _may_be_able(node: Node, offer: Offer, needs: frozenset[str]) -> bool:
    """Whether a node that comes may do what is needed: before its engines are up for the first time it cannot know."""
    return needs <= offer.supply.can or (offer.spec.capabilities is None and not node.was_ready)


def _time_left_s(beat: Heartbeat | None) -> float:
    """Guess from how far it came in what time."""
    if beat is None or not beat.percent:
        return _FIRST_GUESS_S
    return min(_LONGEST_GUESS_S, max(0.5, beat.elapsed_ms / 1000 * (100 - beat.percent) / beat.percent))


def _make_room(state: BrokerState) -> bool:
    """Forget the one that departed first: of those that have never answered anything, if there are any."""
    idle = (service for service in state.departed if not service.is_wanted)
    oldest = next(idle, None)
    if oldest is None:
        return False
    if oldest.has_served:
        oldest = next((service for service in idle if not service.has_served), oldest)
    _drop(state, oldest)
    return True


def _drop(state: BrokerState, service: Service[Request]) -> None:
    state.services.pop(service.name, None)
    state.departed.pop(service, None)
    state.awaited.pop(service, None)
    state.service_timers.clear(service)
