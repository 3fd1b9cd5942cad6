"""REQUEST: what may come in, what has to come back later, and what is a duplicate of something here.

The common case is decided in one expression: the id is new, a node is free, nobody waits, and there is room for any
request, however large. Only what fails that is looked at closely, in the order in which refusing costs least: leaving,
too much unanswered, no room in memory, no such service, no room in the queue.

A refusal is never kept: the client may send the same request id again, and it is looked at afresh.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.capabilities import EXT_KEY as NEEDS_KEY
from ..protocol.capabilities import NOTHING, needs_in
from ..protocol.errors import ErrorKind
from ..protocol.limits import MAX_ENVELOPE_BYTES, MAX_EXT_KEYS, MAX_INT
from .availability import expect, in_words, wait_until, why_absent, why_unable
from .bounds import OVERHEAD_BYTES
from .delivery import subscribe
from .duplicates import FROM_THE_BEGINNING, Start, refuse, resolve
from .leases import grant, reindex
from .model_selection import select_service
from .nodes import Demand
from .predictor import Forecast
from .requests import LOOKS, Request, Session, tenant_of, work_of
from .services import Service, within_bounds
from .state import BrokerState

PARTY_KEY: Final = "party"
_SEED_FLAGS: Final = m.RESUMABLE | m.SEEDED
_LARGEST_BYTES: Final = MAX_ENVELOPE_BYTES + OVERHEAD_BYTES
"""With this much left there is room for any request."""


def take_request(state: BrokerState, session: Session, ask: m.Request, now: float) -> None:
    """Take a request, join it to its duplicate, or refuse it."""
    user, rid, bounds = session.user, ask.rid, state.bounds
    state.counters.requests += 1
    if state.touched:
        reindex(state)
    if ask.prio > bounds.priority and not session.is_bridge and not state.is_admin(user.name):
        ask = msgspec.structs.replace(ask, prio=bounds.priority)
    if not ask.service:
        named = _name_service(state, session, ask, now)
        if named is None:
            return
        ask = named
    start = FROM_THE_BEGINNING
    if ask.resume_n or rid in user.requests or rid in user.results:
        found = resolve(state, session, ask, now)
        if found is None:
            return
        start = found
    service: Service[Request] | None = state.services.get(ask.service)
    is_easy = (
        service is not None
        and start is FROM_THE_BEGINNING
        and service.load_index.mask
        and not service.queue.due
        and (NEEDS_KEY not in ask.ext or needs_in(ask.ext) <= service.shared)
        and len(ask.ext) < MAX_EXT_KEYS
        and state.drain_until is None
        and len(session.subscribers) < bounds.outstanding
        and state.memory.held_bytes + state.result_cache.size_bytes + _LARGEST_BYTES < bounds.held_bytes
    )
    if not is_easy:  # look closely
        service = _find_room(state, session, ask, now, is_begun=start.journal is not None)
    if service is not None:
        if start is not FROM_THE_BEGINNING and start.replaces is not None:
            state.result_cache.forget(start.replaces)
        _begin(state, session, ask, service, start, now)


def _name_service(state: BrokerState, session: Session, ask: m.Request, now: float) -> m.Request | None:
    """Name the service of a request that names none; None after a refusal."""
    chosen = select_service(state, session.user, ask, now)
    if isinstance(chosen, str):
        return msgspec.structs.replace(ask, service=chosen)
    if state.drain_until is not None:
        return ask  # refused because of that: its client goes to another broker
    match chosen.kind:
        case ErrorKind.BAD_REQUEST:
            state.counters.rejected_bad += 1
        case ErrorKind.NOT_FOUND:
            state.counters.rejected_not_found += 1
        case _:
            state.counters.rejected_no_worker += 1
    refuse(state, session, ask, chosen.kind, chosen.text, now, retry_after_s=chosen.retry_after_s)
    return None


# --- may it come in? -------------------------------------------------------------------------------------------------


def _find_room(
    state: BrokerState, session: Session, ask: m.Request, now: float, *, is_begun: bool
) -> Service[Request] | None:
    """Return the service that takes the request, or None after a refusal.

    One that has begun elsewhere was promised its end: the bound of the queue is not for it. How much of that there can
    be is bounded by what a connection may have unanswered, and by memory.
    """
    bounds, counters = state.bounds, state.counters
    if state.drain_until is not None:
        counters.rejected_draining += 1
        text = "this broker is leaving; use another one"
        refuse(state, session, ask, ErrorKind.DRAINING, text, now, retry_after_s=1.0)
        return None
    if len(session.subscribers) >= bounds.outstanding:
        counters.rejected_queue_full += 1
        text = f"{bounds.outstanding} requests of this connection are unanswered; wait for one of them"
        refuse(state, session, ask, ErrorKind.RATE_LIMITED, text, now, retry_after_s=0.1)
        return None
    if len(ask.ext) >= MAX_EXT_KEYS and ask.flags & m.RESUMABLE and "seed" not in ask.ext:
        counters.rejected_bad += 1
        refuse(state, session, ask, ErrorKind.BAD_REQUEST, f"ext has no room for the seed: {MAX_EXT_KEYS} keys", now)
        return None
    if not _is_room_in_memory(state, OVERHEAD_BYTES + len(ask.body) + len(ask.resume)):
        counters.rejected_memory_full += 1
        text = f"this broker holds {state.memory.held_bytes} bytes, near its bound of {bounds.held_bytes}"
        refuse(state, session, ask, ErrorKind.MEMORY_FULL, text, now, retry_after_s=1.0)
        return None
    service, needs = state.services.get(ask.service), needs_in(ask.ext)
    if service is None or not service.healthy:
        service = _await_service(state, session, ask, service, now)
    elif not is_begun and not _is_able(state, session, ask, service, now):
        return None
    if service is None or is_begun or (not service.queue.due and service.load_index.meets(Demand(None, needs))):
        return service
    return _find_room_in_queue(state, session, ask, service, now)


def _is_room_in_memory(state: BrokerState, size: int) -> bool:
    """Whether so many bytes fit; cached results go in favour of new work."""
    missing = state.held_bytes() + size - state.bounds.held_bytes
    if missing > 0:
        state.result_cache.free(missing)
    return state.held_bytes() + size <= state.bounds.held_bytes


def _find_room_in_queue(
    state: BrokerState, session: Session, ask: m.Request, service: Service[Request], now: float
) -> Service[Request] | None:
    bounds, queue = state.bounds, service.queue
    bound = min(bounds.queue_requests, bounds.in_flight * max(1, service.healthy))
    party = _party(session, ask)
    if queue.has_room(party, tenant_of(party, session.user), len(ask.body), bound, bounds.queue_bytes):
        return service if _is_in_time(state, session, ask, service, now) else None
    state.counters.rejected_queue_full += 1
    retry_after_s = service.retry_after_s()
    text = f"all nodes of {service.name!r} are busy and {queue.count} requests wait; retry in {retry_after_s:.2f} s"
    refuse(state, session, ask, ErrorKind.QUEUE_FULL, text, now, retry_after_s=retry_after_s)
    return None


def _is_in_time(state: BrokerState, session: Session, ask: m.Request, service: Service[Request], now: float) -> bool:
    """Whether a request that has to wait can be done within its time, by what was measured; else it is refused here.

    The time of a patient one does not run while its queue moves, so only the bound of its whole time counts.
    """
    time_s = _end_of(ask, now) - now if _is_patient(ask) else ask.ttl_ms / 1000
    if time_s == math.inf:
        return True
    party = _party(session, ask)
    before = service.queue.before_new(ask.prio, tenant_of(party, session.user), party)
    forecast = service.forecast(before, work_of(ask), ask.prio)
    if forecast is None or forecast.sure_s <= time_s:
        return True
    state.counters.rejected_too_late += 1
    retry_after_s = within_bounds(forecast.wait_s)
    refuse(
        state,
        session,
        ask,
        ErrorKind.QUEUE_FULL,
        _too_late(service, forecast, time_s, retry_after_s),
        now,
        retry_after_s=retry_after_s,
    )
    return False


def _too_late(service: Service[Request], forecast: Forecast, time_s: float, retry_after_s: float) -> str:
    """Say in numbers why a request is not let in that could not be done in its time."""
    return (
        f"{service.name!r} is busy: {forecast.before} requests come before this one, so it would begin in about"
        f" {forecast.wait_s:.2f} s and take {forecast.run_s:.2f} s, and that is not sure to end within its"
        f" {time_s:.2f} s; retry in {retry_after_s:.2f} s"
    )


def _is_able(state: BrokerState, session: Session, ask: m.Request, service: Service[Request], now: float) -> bool:
    """Whether a node of a service that is served can do what a request needs; if none can, it is refused here."""
    refusal = why_unable(state, service, needs_in(ask.ext), now)
    if refusal is None:
        return True
    kind, text, retry_after_s = refusal
    if kind is ErrorKind.BAD_REQUEST:
        state.counters.rejected_bad += 1
    else:
        state.counters.rejected_no_worker += 1
    refuse(state, session, ask, kind, text, now, retry_after_s=retry_after_s)
    return False


def _await_service(
    state: BrokerState, session: Session, ask: m.Request, service: Service[Request] | None, now: float
) -> Service[Request] | None:
    """Let a request wait for a service that may come (back) any moment; refuse it otherwise."""
    until = wait_until(state, service)
    if until <= now:
        kind, text, retry_after_s = why_absent(state, ask.service, now)
        if kind is ErrorKind.NOT_FOUND:
            state.counters.rejected_not_found += 1
        else:
            state.counters.rejected_no_worker += 1
        refuse(state, session, ask, kind, text, now, retry_after_s=retry_after_s)
        return None
    if service is None:
        service = expect(state, ask.service, until)
        if service is None:
            state.counters.rejected_no_worker += 1
            text = f"model {ask.service!r} is not here yet, and as many others as may be are waited for"
            refuse(state, session, ask, ErrorKind.NO_WORKER, text, now, retry_after_s=1.0)
    elif not service.slot:
        state.service_timers.set(service, until)
    return service


# --- in --------------------------------------------------------------------------------------------------------------


def _begin(
    state: BrokerState, session: Session, ask: m.Request, service: Service[Request], start: Start, now: float
) -> None:
    user, ttl_s, size = session.user, ask.ttl_ms / 1000, OVERHEAD_BYTES + len(ask.body)
    ext = ask.ext if ask.flags & _SEED_FLAGS != m.RESUMABLE else _with_seed(ask)
    deadline = now + ttl_s
    is_patient = bool(ask.flags & m.STREAM) or ask.ext.get("progress") is True
    ends_at = _end_of(ask, now) if is_patient else math.inf
    party = _party(session, ask) if ask.ext else session
    needs = needs_in(ask.ext) if NEEDS_KEY in ask.ext else NOTHING
    request = Request(ask, user, service, party, ext, ttl_s, deadline, now, [], is_patient, deadline, ends_at, needs)
    journal = start.journal
    if journal is not None:
        request.resume_from(journal, start.revision)
        size += journal.size_bytes
    state.memory.hold(request, size)
    user.requests[ask.rid] = request
    subscribe(state, session, request, ask.resume_n, now)
    queue = service.queue
    if service.load_index.mask and not queue.due and request.revision is None:
        offer = service.place(ext, needs)
        if offer is not None:
            grant(state, request, offer, now)  # which sets its timer
            return
    look_at = min(now + ttl_s / LOOKS, ends_at) if is_patient else deadline
    state.request_timers.set(request, min(look_at, now + queue.tell_every_s) if request.hears_place else look_at)
    request.note_queued(queue.count, _why_queued(service, request))
    if journal is None and needs <= service.shared:
        request.expect(service.forecast(queue.before_new(ask.prio, request.tenant, party), request.work, ask.prio))
    (queue.push if journal is None else queue.push_begun)(request)
    state.dirty[service] = None


def _is_patient(ask: m.Request) -> bool:
    """Whether its time is time without progress."""
    return bool(ask.flags & m.STREAM) or ask.ext.get("progress") is True


def _party(session: Session, ask: m.Request) -> Hashable:
    """Return whose turn it is in queues: a bridge asks for many, and says for whom each time.

    Who is no bridge may part what it has among its own, and no more: else it could take the turns of anybody.
    """
    name = ask.ext.get(PARTY_KEY)
    if not isinstance(name, str):
        return session
    return name if session.is_bridge else (session, name)


def _why_queued(service: Service[Request], request: Request) -> str:
    if not service.healthy:
        return "no node served the model"
    if service.load_index.mask:
        if service.queue.due:
            return "others had waited longer"
        if request.revision is not None:
            return "it goes on only where the same weights run"
        return f"the free nodes cannot do what it needs: {in_words(request.needs)}"
    return f"all {service.healthy} nodes were busy" if service.healthy > 1 else "the only node was busy"


def _with_seed(ask: m.Request) -> m.Ext:
    """Return ext with a seed, the same at every broker: a resumable request needs one."""
    seed = int.from_bytes(hashlib.sha256(ask.rid).digest()[:8], "big") & MAX_INT
    return {**ask.ext, "seed": seed}


def _end_of(ask: m.Request, now: float) -> float:
    """Return when a patient request must be over, whatever its progress (`total_ms` in ext)."""
    total_ms = ask.ext.get("total_ms")
    return now + total_ms / 1000 if type(total_ms) is int and total_ms > 0 else math.inf
