"""Explains single requests: those that live, and the last ones that have ended.

An ended request is kept itself, without its units and its node; a small body stays (`Request.slim`). That costs a fifth
of all that a broker does for a request that costs its node nothing, so only so many uneventful ones a second are kept;
what failed, was cancelled, moved or streamed always is. Names that clients chose are never keys: asking for one walks
through everything, which only whoever waits for an explanation pays for.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.request_trace import Attempt, RequestTrace, State, spent
from ..protocol.sanitize import printable
from ..protocol.snapshot import RequestPhase
from .requests import QUEUED, Request, RequestState, TraceNotes, User

KEPT: Final = 2048
"""Ended requests that can be explained: seconds of a busy broker, days of a quiet one."""
_PLAIN_PER_S: Final = 500
"""Uneventful whole answers kept in a second: a fleet of language models makes fewer."""
_MOST_TOLD: Final = 20
PHASES: Final[dict[RequestState, RequestPhase]] = {
    RequestState.QUEUED: "queued",
    RequestState.LEASED: "dispatched",
    RequestState.STREAMING: "streaming",
}
_CANCELLED: Final = 499
_NO_META: Final[m.Ext] = {}
_NO_NOTES: Final = TraceNotes()


class _Entry(msgspec.Struct, eq=False):
    """A request and how it ended; `ended_at` None: it lives. `had_node`: an attempt runs, or ran until the end."""

    request: Request
    node: str
    had_node: bool
    meta: m.Ext = _NO_META
    error: m.Error | None = None
    ended_at: float | None = None


class History:
    """The requests of one broker that can be explained."""

    __slots__ = ("_broker_id", "_ended", "_plain_left", "_renewed_at")

    def __init__(self, broker_id: str) -> None:
        self._broker_id = broker_id
        self._ended: deque[_Entry] = deque(maxlen=KEPT)
        self._plain_left = _PLAIN_PER_S
        self._renewed_at = -math.inf

    def add(self, request: Request, ending: m.Final | m.Error, now: float) -> bool:
        """Keep a request that ends now, before its lease is taken; the oldest one makes room. False: it is not kept."""
        trace = request.trace
        if type(ending) is m.Final and request.first_at is None and (trace is None or not trace.lost):
            if now - self._renewed_at >= 1.0:
                self._renewed_at, self._plain_left = now, _PLAIN_PER_S
            self._plain_left -= 1
            if self._plain_left < 0:
                return False
        entry = _live_entry(request, now)
        if type(ending) is m.Error:
            entry.error = ending
        elif type(ending) is m.Final:
            entry.meta = ending.meta
        self._ended.append(entry)
        return True

    def find(self, users: Mapping[str, User], name: str, user: str | None, now: float) -> list[RequestTrace]:
        """Explain the requests of a rid (hex) or of a client's own request id, the newest first.

        Args:
            user: Whose requests may be explained; None = everybody's.
        """
        live = map(_live_entry, _live(users, user))
        found = (
            entry
            for entry in itertools.chain(live, reversed(self._ended))
            if user in (None, entry.request.user.name)
            and name in (entry.request.ask.rid.hex(), entry.request.ask.ext.get("request_id"))
        )
        return [self._trace(entry, now) for entry in itertools.islice(found, _MOST_TOLD)]

    def timings(self, request: Request, now: float) -> m.Ext:
        """Return where the time of a request that ends went, in microseconds, for a client that traces it."""
        attempts = _attempts(_live_entry(request, ended_at=now))
        parts = msgspec.structs.asdict(spent(now - request.admitted_at, attempts))
        times: m.Ext = {name.removesuffix("_s") + "_us": round(1e6 * seconds) for name, seconds in parts.items()}
        times.update(broker=self._broker_id, attempts=len(attempts))
        if attempts:
            last = attempts[-1]
            times.update(node=last.node, device=last.device, batch=last.batch)
        return times

    def _trace(self, entry: _Entry, now: float) -> RequestTrace:
        request, error = entry.request, entry.error
        ask, notes = request.ask, request.trace or _NO_NOTES
        reason, prompt_tokens = entry.meta.get("finish_reason"), entry.meta.get("prompt_tokens")
        return RequestTrace(
            broker_id=self._broker_id,
            rid=ask.rid.hex(),
            request_id=request_id_of(ask.rid, ask.ext),
            user=request.user.name,
            model=ask.service,
            is_stream=request.is_stream,
            state=_state_of(entry),
            ago_s=now - request.admitted_at,
            age_s=(now if entry.ended_at is None else entry.ended_at) - request.admitted_at,
            queued_behind=notes.queued_behind,
            queued_why=notes.queued_why,
            begun_elsewhere=notes.begun_elsewhere,
            units=request.next_n,
            attempts=_attempts(entry),
            code=error.code if error is not None else 0,
            reason=error.reason if error is not None else "",
            text=printable(error.text) if error is not None else "",
            finish_reason=printable(reason) if isinstance(reason, str) else "",
            prompt_tokens=prompt_tokens if type(prompt_tokens) is int else 0,
        )


def attempt_of(request: Request, node: str, ended_at: float | None, why: str = "") -> Attempt:
    """Describe the attempt that runs, or that ends now."""
    begun, report, first_at = request.admitted_at, request.report or {}, request.first_at
    device, batch = report.get("device"), report.get("batch")
    # A stream's deadline moves on with each unit, so it tells when the last one came.
    last_at = request.deadline - request.ttl_s if first_at is not None and request.is_stream else None
    return Attempt(
        node=node,
        dispatched_s=request.dispatched_at - begun,
        from_unit=request.from_unit,
        units=max(0, request.next_n - request.from_unit),
        first_s=first_at - begun if first_at is not None else None,
        last_s=last_at - begun if last_at is not None else None,
        ended_s=ended_at - begun if ended_at is not None else None,
        why=printable(why),
        device=printable(device) if isinstance(device, str) else "",
        batch=batch if type(batch) is int else 0,
        wait_s=_seconds(report, "wait_us"),
        prefill_s=_seconds(report, "prefill_us"),
    )


def request_id_of(rid: bytes, ext: m.Ext) -> str:
    """Return the name that the client gave the request, else the rid in hex."""
    name = ext.get("request_id")
    return printable(name) if isinstance(name, str) and name else rid.hex()


def _live_entry(request: Request, ended_at: float | None = None) -> _Entry:
    node = request.node or request.last_node
    name = node.ready.node_id if node is not None else ""
    return _Entry(request, name, request.state is not QUEUED, ended_at=ended_at)


def _attempts(entry: _Entry) -> list[Attempt]:
    """List the attempts that were lost, and the one that runs or was running when the request ended."""
    request = entry.request
    attempts = list(request.trace.lost) if request.trace is not None else []
    if entry.had_node:
        attempts.append(attempt_of(request, entry.node, entry.ended_at))
    return attempts


def _state_of(entry: _Entry) -> State:
    if entry.ended_at is None:
        return PHASES[entry.request.state]
    if entry.error is None:
        return "done"
    return "cancelled" if entry.error.code == _CANCELLED else "failed"


def _live(users: Mapping[str, User], user: str | None) -> Iterator[Request]:
    if user is None:
        return itertools.chain.from_iterable(known.requests.values() for known in users.values())
    return iter(users[user].requests.values() if user in users else ())


def _seconds(report: m.Ext, name: str) -> float | None:
    value = report.get(name)
    return value / 1e6 if type(value) is int and value >= 0 else None
