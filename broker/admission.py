"""REQUEST and CANCEL: what may come in, what is told to come back later, and what is the twin of something here.

A refusal is never kept: the client may send the same request id again, and it is looked at afresh.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable
from typing import NamedTuple

import msgspec

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from ..protocol.limits import MAX_ENVELOPE_BYTES, MAX_EXT_KEYS, MAX_INT, MAX_RESUME_BYTES
from .availability import wait_until, why_absent
from .bounds import OVERHEAD_BYTES
from .duplicates import Twins
from .journal import Journal, split_blob
from .leases import grant
from .model_selection import select_service
from .names import expect
from .prefixes import place
from .requests import LOOKS, Request
from .result_cache import CachedResult
from .services import Service
from .sessions import Session
from .state import BrokerState, error


class Start(NamedTuple):
    """Where a request begins: after the units of a journal, made by the weights of a revision."""

    journal: Journal | None
    revision: str | None


PARTY_KEY = "party"
_FROM_THE_BEGINNING = Start(None, None)
_SEED_FLAGS = m.RESUMABLE | m.SEEDED


class Admission:
    """Takes requests in."""

    __slots__ = ("_ample_bytes", "_is_admin", "_most_outstanding", "_state", "_twins")

    def __init__(self, state: BrokerState, twins: Twins, is_admin: Callable[[str], bool]) -> None:
        self._state = state
        self._twins = twins
        self._is_admin = is_admin
        self._most_outstanding = state.bounds.outstanding
        self._ample_bytes = state.bounds.held_bytes - MAX_ENVELOPE_BYTES - OVERHEAD_BYTES
        """While less than this is held, there is room for any request."""

    def request(self, session: Session, ask: m.Request, now: float) -> None:
        """Take a request, join it to its twin, or refuse it."""
        state, user, rid = self._state, session.user, ask.rid
        state.counters.requests += 1
        if ask.prio > state.bounds.priority and not self._is_admin(user.name):
            ask = msgspec.structs.replace(ask, prio=state.bounds.priority)
        if not ask.service:
            named = self._with_service(session, ask, now)
            if named is None:
                return
            ask = named
        if ask.resume_n or rid in user.requests or rid in user.results:
            self._again(session, ask, now)
            return
        service: Service | None = state.services.get(ask.service)
        is_easy = (
            service is not None
            and service.load_index.mask
            and not service.queue.count
            and len(ask.ext) < MAX_EXT_KEYS
            and state.drain_until is None
            and len(session.subscribers) < self._most_outstanding
            and state.held_bytes + state.result_cache.size_bytes < self._ample_bytes
        )
        if not is_easy:  # look closely
            service = self._admit_to(session, ask, now)
        if service is not None:
            self._begin(session, ask, service, _FROM_THE_BEGINNING, now)

    def _again(self, session: Session, ask: m.Request, now: float) -> None:
        """Take a request that is known here, or that was begun elsewhere."""
        user, rid = session.user, ask.rid
        if rid in user.requests and self._twins.join(session, ask, user.requests[rid], now):
            return
        outcome = user.results.get(rid)
        if outcome is not None and self._twins.replay(session, ask, outcome, now):
            return
        start = _find_start(ask, outcome)
        if not isinstance(start, Start):
            self._refuse(session, ask, *start, now)
            return
        service = self._admit_to(session, ask, now, is_begun=start is not _FROM_THE_BEGINNING)
        if service is not None:
            if outcome is not None:
                self._state.result_cache.forget(outcome)
            self._begin(session, ask, service, start, now)

    def _with_service(self, session: Session, ask: m.Request, now: float) -> m.Request | None:
        """Name the service of a request that names none; None after a refusal."""
        state = self._state
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
        self._refuse(session, ask, chosen.kind, chosen.text, now, retry_after_s=chosen.retry_after_s)
        return None

    # --- may it come in? -------------------------------------------------------------------------------------------

    def _admit_to(self, session: Session, ask: m.Request, now: float, *, is_begun: bool = False) -> Service | None:
        """Return the service that takes the request, or None after a refusal.

        One that has begun elsewhere was promised its end: the bound of the queue is not for it. How much of that there
        can be is bounded by what a connection may have unanswered, and by memory.
        """
        state = self._state
        bounds = state.bounds
        if state.drain_until is not None:
            state.counters.rejected_draining += 1
            self._refuse(
                session, ask, ErrorKind.DRAINING, "this broker is leaving; use another one", now, retry_after_s=1.0
            )
            return None
        if len(session.subscribers) >= bounds.outstanding:
            state.counters.rejected_queue_full += 1
            text = f"{bounds.outstanding} requests of this connection are unanswered; wait for one of them"
            self._refuse(session, ask, ErrorKind.RATE_LIMITED, text, now, retry_after_s=0.1)
            return None
        if len(ask.ext) >= MAX_EXT_KEYS and ask.flags & m.RESUMABLE and "seed" not in ask.ext:
            state.counters.rejected_bad += 1
            self._refuse(session, ask, ErrorKind.BAD_REQUEST, f"ext has no room for the seed: {MAX_EXT_KEYS} keys", now)
            return None
        size = OVERHEAD_BYTES + len(ask.body) + len(ask.resume)
        if state.held_bytes + state.result_cache.size_bytes + size > bounds.held_bytes and not self._make_room(size):
            state.counters.rejected_memory_full += 1
            text = f"this broker holds {state.held_bytes} bytes, near its bound of {bounds.held_bytes}"
            self._refuse(session, ask, ErrorKind.MEMORY_FULL, text, now, retry_after_s=1.0)
            return None
        service = state.services.get(ask.service)
        if service is None or not service.healthy:
            service = self._absent(session, ask, service, now)
        if service is None or is_begun or (service.load_index.mask and not service.queue.count):
            return service
        return self._admit_to_queue(session, ask, service, now)

    def _make_room(self, size: int) -> bool:
        """Drop outcomes in favour of new work; False if that is not enough."""
        state = self._state
        state.result_cache.free(state.total_held_bytes() + size - state.bounds.held_bytes)
        return state.total_held_bytes() + size <= state.bounds.held_bytes

    def _admit_to_queue(self, session: Session, ask: m.Request, service: Service, now: float) -> Service | None:
        bounds, queue = self._state.bounds, service.queue
        bound = min(bounds.queue_requests, bounds.in_flight * max(1, service.healthy))
        is_room = queue.has_room(_party(session, ask), session.user, len(ask.body), bound, bounds.queue_bytes)
        if is_room:
            return service
        self._state.counters.rejected_queue_full += 1
        retry_after_s = service.retry_after_s()
        text = f"all nodes of {service.name!r} are busy and {queue.count} requests wait; retry in {retry_after_s:.2f} s"
        self._refuse(session, ask, ErrorKind.QUEUE_FULL, text, now, retry_after_s=retry_after_s)
        return None

    def _absent(self, session: Session, ask: m.Request, service: Service | None, now: float) -> Service | None:
        """Let a request wait for a service that may come (back) any moment; refuse it otherwise."""
        state = self._state
        until = wait_until(state, service)
        if until <= now:
            kind, text, retry_after_s = why_absent(state, ask.service, now)
            if kind is ErrorKind.NOT_FOUND:
                state.counters.rejected_not_found += 1
            else:
                state.counters.rejected_no_worker += 1
            self._refuse(session, ask, kind, text, now, retry_after_s=retry_after_s)
            return None
        if service is None:
            service = expect(state, ask.service, until)
            if service is None:
                state.counters.rejected_no_worker += 1
                text = f"model {ask.service!r} is not here yet, and as many others as may be are waited for"
                self._refuse(session, ask, ErrorKind.NO_WORKER, text, now, retry_after_s=1.0)
        elif not service.slot:
            state.service_timers.set(service, until)
        return service

    def _refuse(
        self, session: Session, ask: m.Request, kind: ErrorKind, text: str, now: float, *, retry_after_s: float = 0.0
    ) -> None:
        self._state.events.note("rejected", kind.value, text, now, ask)
        self._twins.drop_ended(session, ask.rid)
        self._state.tell_client(session, error(ask.rid, kind, text, retry_after_s=retry_after_s))

    # --- in --------------------------------------------------------------------------------------------------------

    def _begin(
        self,
        session: Session,
        ask: m.Request,
        service: Service,
        start: Start,
        now: float,
    ) -> None:
        state, ttl_s = self._state, ask.ttl_ms / 1000
        ext = ask.ext if ask.flags & _SEED_FLAGS != m.RESUMABLE else _with_seed(ask)
        size = OVERHEAD_BYTES + len(ask.body)
        deadline = now + ttl_s
        party = _party(session, ask)
        request = Request(ask, session.user, service, party, ext, ttl_s, deadline, now, size, [])
        request.is_patient = bool(ask.flags & m.STREAM) or ask.ext.get("progress") is True
        if request.is_patient:
            request.announced_deadline = deadline
            request.ends_at = _end_of(ask, now)
            deadline = min(now + ttl_s / LOOKS, request.ends_at)
        if start is not _FROM_THE_BEGINNING:
            size += _go_on(request, start)
            request.begun_elsewhere = request.next_n
        state.held_bytes += size
        session.user.requests[ask.rid] = request
        state.request_timers.set(request, deadline)
        self._twins.attach(session, request, ask.resume_n, now)
        load_index = service.load_index
        if load_index.mask and not service.queue.count and request.revision is None:
            grant(state, request, place(service, request), now)
        else:
            request.queued_behind, request.queued_why = service.queue.count, _why_queued(service)
            (service.queue.push if start is _FROM_THE_BEGINNING else service.queue.push_begun)(request)
            state.dirty[service] = None


def _party(session: Session, ask: m.Request) -> Hashable:
    """Return whose turn it is in queues: a bridge asks for many, and says for whom each time."""
    name = ask.ext.get(PARTY_KEY) if ask.ext else None
    return (session, name) if isinstance(name, str) else session


def _why_queued(service: Service) -> str:
    if not service.healthy:
        return "no node served the model"
    if service.load_index.mask:
        return "others had waited longer" if service.queue.count else "it goes on only where the same weights run"
    return f"all {service.healthy} nodes were busy" if service.healthy > 1 else "the only node was busy"


def _go_on(request: Request, start: Start) -> int:
    """Begin after the units that are there; return their size."""
    request.journal, request.revision = start
    if request.journal is None:
        return 0
    request.next_n = request.journal.next_n
    request.held_bytes += request.journal.size_bytes
    return request.journal.size_bytes


def _with_seed(ask: m.Request) -> m.Ext:
    """Return ext with a seed, the same at every broker: a resumable request needs one."""
    seed = int.from_bytes(hashlib.sha256(ask.rid).digest()[:8], "big") & MAX_INT
    return {**ask.ext, "seed": seed}


def _end_of(ask: m.Request, now: float) -> float:
    """Return when a patient request must be over, whatever its progress (`total_ms` in ext)."""
    total_ms = ask.ext.get("total_ms")
    return now + total_ms / 1000 if type(total_ms) is int and total_ms > 0 else math.inf


def _find_start(ask: m.Request, outcome: CachedResult | None) -> Start | tuple[ErrorKind, str]:
    """Find the units to go on from: the client's own, or those of a cancelled stream; or say why there are none."""
    resume_n = ask.resume_n
    journal, revision = (outcome.journal, outcome.revision) if outcome is not None else _FROM_THE_BEGINNING
    if resume_n and not ask.flags & m.RESUMABLE:
        return ErrorKind.NOT_RESUMABLE, f"the request is not resumable, and {resume_n} units of it were delivered"
    if resume_n and ask.flags & m.RESUME:
        if len(ask.resume) > MAX_RESUME_BYTES:
            return ErrorKind.TOO_LARGE, f"the units to resume from are over {MAX_RESUME_BYTES} bytes"
        if resume_n > len(ask.resume):
            return ErrorKind.BAD_REQUEST, f"{len(ask.resume)} bytes cannot hold {resume_n} units"
        journal, revision = _journal_of(ask), _revision_of(ask)
    if journal is not None and ask.flags & m.RESUMABLE and journal.chunk_at(resume_n) is not None:
        return Start(journal, revision)
    if resume_n:
        return ErrorKind.BAD_REQUEST, f"this broker does not hold unit {resume_n}; send the units before it (RESUME)"
    return _FROM_THE_BEGINNING


def _revision_of(ask: m.Request) -> str | None:
    revision = ask.ext.get("revision")
    return revision if isinstance(revision, str) else None


def _journal_of(ask: m.Request) -> Journal | None:
    split = split_blob(ask.resume)
    return Journal(split[1], split[0], ask.resume_n) if split is not None and split[0] else None
