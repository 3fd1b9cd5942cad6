"""The names of services a broker knows: who may bring one in, and how long it stays when nobody offers it any more.

A peer can say any number of names. So those that nodes offer are bounded in all, those that only clients have said are
a few, and one that has never answered anything goes as soon as it cannot be waited for. What has served is remembered
for a while, because its numbers are asked for; it makes room when room is needed.
"""

from __future__ import annotations

import math

from ..protocol.limits import MAX_AWAITED_SERVICES, MAX_FLEET_SERVICES
from .bounds import FORGET_SERVICE_S
from .services import Service
from .state import BrokerState


def learn(state: BrokerState, name: str) -> Service | None:
    """Return the service that a node offers under a name; None if no more names are taken."""
    service = state.services.get(name)
    if service is None:
        if len(state.services) >= MAX_FLEET_SERVICES and not _make_room(state):
            return None
        service = state.services[name] = Service(name)
    state.departed.pop(service, None)
    state.awaited.pop(service, None)
    return service


def expect(state: BrokerState, name: str, until: float) -> Service | None:
    """Return the service that a client waits for, though no node has offered it yet; None if too many are."""
    if len(state.awaited) >= MAX_AWAITED_SERVICES or len(state.services) >= MAX_FLEET_SERVICES:
        return None
    service = state.services[name] = Service(name)
    state.awaited[service] = None
    state.service_timers.set(service, until)
    return service


def depart(state: BrokerState, service: Service, now: float, *, may_return: bool) -> None:
    """Note that the last node that offered a service is gone, or (`may_return` False) offers it no more."""
    if not may_return and not service.has_served and not service.is_wanted:
        _drop(state, service)
        return
    state.departed[service] = None
    state.service_timers.set(service, now + state.timing.eviction_s)


def forget(state: BrokerState, service: Service, now: float) -> None:
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


def _make_room(state: BrokerState) -> bool:
    """Forget the one that departed first: of those that have never answered anything, if there are any."""
    idle = (one for one in state.departed if not one.is_wanted)
    oldest = next(idle, None)
    if oldest is None:
        return False
    if oldest.has_served:
        oldest = next((one for one in idle if not one.has_served), oldest)
    _drop(state, oldest)
    return True


def _drop(state: BrokerState, service: Service) -> None:
    state.services.pop(service.name, None)
    state.departed.pop(service, None)
    state.awaited.pop(service, None)
    state.service_timers.clear(service)
