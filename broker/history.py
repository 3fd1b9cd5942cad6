"""The stories of requests: of those that live, and of the last ones that have ended.

Of a request that ends one tuple is kept, with neither its body nor its units. To make and hold it costs a fifth of all
that a broker does for a request that costs its node nothing, so only so many uneventful ones a second are kept; what
failed, was cancelled, moved or streamed always is. Names that clients chose are never keys: asking for one walks
through everything, which only whoever waits for an explanation pays for.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..protocol import messages as m
from ..protocol.request_trace import Attempt, RequestTrace, State, spent
from ..protocol.sanitize import printable
from .requests import QUEUED, Request, RequestState

if TYPE_CHECKING:
    from .state import BrokerState

KEPT: Final = 2048
"""Ended requests that can be explained: seconds of a busy broker, days of a quiet one."""
_PLAIN_PER_S: Final = 500
"""Uneventful whole answers kept in a second: a fleet of language models makes fewer."""
_MOST_TOLD: Final = 20
_MOST_TRIES: Final = 20
NOT_DISPATCHED: Final = -1.0
"""Instead of a time, between two attempts."""
_PHASES: Final[dict[RequestState, State]] = {
    RequestState.QUEUED: "queued",
    RequestState.LEASED: "dispatched",
    RequestState.STREAMING: "streaming",
}
_CANCELLED: Final = 499
_NO_META: Final[m.Ext] = {}
_ACCOUNT: Final = ("device", "batch", "wait_us", "prefill_us")
_ALIVE: Final[tuple[Any, ...]] = (_NO_META, None, None)
"""The last fields of Facts while a request lives."""


class Try(msgspec.Struct, eq=False):
    """An attempt that was lost, in the broker's own time."""

    node_id: str
    dispatched_at: float
    from_unit: int
    end_unit: int
    first_at: float | None
    last_at: float | None
    ended_at: float
    told: m.Ext
    why: str


class Facts(msgspec.Struct, eq=False):
    """What a story is made of. `stage`: where it is, or was when it ended; `ended_at` None: it lives."""

    user: str
    rid: bytes
    ext: m.Ext
    service: str
    flags: int
    admitted_at: float
    dispatched_at: float
    first_at: float | None
    last_at: float | None
    from_unit: int
    units: int
    told: m.Ext | None
    past: list[Try] | None
    node: str
    queued_behind: int
    queued_why: str
    begun_elsewhere: int
    stage: RequestState
    meta: m.Ext
    ending: m.Error | None
    ended_at: float | None

    @property
    def is_stream(self) -> bool:
        """Whether its subscriber sees units as they come."""
        return bool(self.flags & m.STREAM)


class History:
    """Those of one broker."""

    __slots__ = ("_ended", "_plain_left", "_renewed_at")

    def __init__(self) -> None:
        self._ended: deque[tuple[Any, ...]] = deque(maxlen=KEPT)
        self._plain_left = _PLAIN_PER_S
        self._renewed_at = -math.inf

    def close(self, request: Request, message: m.Final | m.Error, now: float) -> None:
        """Keep what there is to tell of a request that ends now; the oldest one makes room."""
        if type(message) is not m.Final:
            self._ended.append((*_facts(request), _NO_META, message, now))
            return
        if request.first_at is None and request.past is None:
            if now - self._renewed_at >= 1.0:
                self._renewed_at, self._plain_left = now, _PLAIN_PER_S
            self._plain_left -= 1
            if self._plain_left < 0:
                return
        self._ended.append((*_facts(request), message.meta, None, now))

    def find(self, state: BrokerState, name: str, user: str | None, now: float) -> list[RequestTrace]:
        """Tell the stories of a rid (hex) or of a client's own request id, the newest first.

        Args:
            user: Whose requests may be told; None = everybody's.
        """
        live = (Facts(*_facts(one), *_ALIVE) for one in _live(state, user))
        ended = (Facts(*one) for one in reversed(self._ended))
        found = (
            one
            for one in itertools.chain(live, ended)
            if user in (None, one.user) and name in (one.rid.hex(), one.ext.get("request_id"))
        )
        return [tell(state, one, now) for one in itertools.islice(found, _MOST_TOLD)]


def _facts(request: Request) -> tuple[Any, ...]:
    """Return the first fields of Facts: a tuple is made in a tenth of the time of anything with names."""
    ask = request.ask
    node = request.last_node if request.offer is None else request.offer.node
    return (
        request.user.name,
        ask.rid,
        ask.ext,
        ask.service,
        ask.flags,
        request.admitted_at,
        request.dispatched_at,
        request.first_at,
        # A stream's deadline moves on with each unit, so it tells when the last one came.
        request.deadline - request.ttl_s if request.first_at is not None and ask.flags & m.STREAM else None,
        request.from_unit,
        request.next_n,
        request.report,
        request.past,
        node.ready.node_id if node is not None else "",
        request.queued_behind,
        request.queued_why,
        request.begun_elsewhere,
        request.state,
    )


def end_try(request: Request, now: float, why: str) -> None:
    """Note that the attempt that runs is lost."""
    if request.past is None:
        request.past = []
    request.past.append(_last_try(Facts(*_facts(request), *_ALIVE), now, why))
    if len(request.past) > _MOST_TRIES:
        del request.past[1]  # the first and the newest tell most
    request.dispatched_at = NOT_DISPATCHED
    request.first_at = None
    request.report = None


def tell(state: BrokerState, one: Facts, now: float) -> RequestTrace:
    """Tell one story: to its end, or so far."""
    ending, reason, prompt_tokens = one.ending, one.meta.get("finish_reason"), one.meta.get("prompt_tokens")
    return RequestTrace(
        broker_id=state.broker_id,
        rid=one.rid.hex(),
        request_id=request_id_of(one.rid, one.ext),
        user=one.user,
        model=one.service,
        is_stream=one.is_stream,
        state=_state_of(one),
        ago_s=now - one.admitted_at,
        age_s=(now if one.ended_at is None else one.ended_at) - one.admitted_at,
        queued_behind=one.queued_behind if one.queued_behind >= 0 else None,
        queued_why=one.queued_why,
        begun_elsewhere=one.begun_elsewhere,
        units=one.units,
        attempts=_attempts(one, now),
        code=ending.code if ending is not None else 0,
        reason=ending.reason if ending is not None else "",
        text=printable(ending.text) if ending is not None else "",
        finish_reason=printable(reason) if isinstance(reason, str) else "",
        prompt_tokens=prompt_tokens if type(prompt_tokens) is int else 0,
    )


def timings(broker_id: str, request: Request, now: float) -> m.Ext:
    """Return where the time of a request that ends went, in microseconds, for a client that traces it."""
    attempts = _attempts(Facts(*_facts(request), *_ALIVE), now)
    parts = msgspec.structs.asdict(spent(now - request.admitted_at, attempts))
    told: m.Ext = {name.removesuffix("_s") + "_us": round(1e6 * seconds) for name, seconds in parts.items()}
    told.update(broker=broker_id, attempts=len(attempts))
    if attempts:
        last = attempts[-1]
        told.update(node=last.node, device=last.device, batch=last.batch)
    return told


def request_id_of(rid: bytes, ext: m.Ext) -> str:
    """Return the name that the client gave the request, else the rid in hex."""
    name = ext.get("request_id")
    return printable(name) if isinstance(name, str) and name else rid.hex()


def _state_of(one: Facts) -> State:
    if one.ended_at is None:
        return _PHASES[one.stage]
    if one.ending is None:
        return "done"
    return "cancelled" if one.ending.code == _CANCELLED else "failed"


def _live(state: BrokerState, user: str | None) -> Iterator[Request]:
    if user is None:
        return itertools.chain.from_iterable(one.requests.values() for one in state.users.values())
    known = state.users.get(user)
    return iter(known.requests.values() if known is not None else ())


def _attempts(one: Facts, now: float) -> list[Attempt]:
    """List the attempts that were lost, and the one that runs or was running when it ended."""
    told = [_attempt(each, one.admitted_at) for each in one.past or ()]
    if one.stage is not QUEUED and one.dispatched_at != NOT_DISPATCHED:
        last = _attempt(_last_try(one, now if one.ended_at is None else one.ended_at, ""), one.admitted_at)
        told.append(last if one.ended_at is not None else msgspec.structs.replace(last, ended_s=None))
    return told


def _last_try(one: Facts, now: float, why: str) -> Try:
    return Try(
        one.node,
        one.dispatched_at,
        one.from_unit,
        one.units,
        one.first_at,
        one.last_at,
        now,
        {name: one.told[name] for name in _ACCOUNT if name in one.told} if one.told else {},
        why,
    )


def _attempt(one: Try, begun: float) -> Attempt:
    device, batch = one.told.get("device"), one.told.get("batch")
    return Attempt(
        node=one.node_id,
        dispatched_s=one.dispatched_at - begun,
        from_unit=one.from_unit,
        units=max(0, one.end_unit - one.from_unit),
        first_s=one.first_at - begun if one.first_at is not None else None,
        last_s=one.last_at - begun if one.last_at is not None else None,
        ended_s=one.ended_at - begun,
        why=printable(one.why),
        device=printable(device) if isinstance(device, str) else "",
        batch=batch if type(batch) is int else 0,
        wait_s=_seconds(one.told, "wait_us"),
        prefill_s=_seconds(one.told, "prefill_us"),
    )


def _seconds(told: m.Ext, name: str) -> float | None:
    value = told.get(name)
    return value / 1e6 if type(value) is int and value >= 0 else None
