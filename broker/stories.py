"""The stories of requests: those that live, told from their records, and those that have ended, kept for a while.

What each request costs here is one small record at its end. Names that clients chose are never keys: asking for one
walks through everything, which only somebody who waits for an explanation pays for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from ..protocol import messages as m
from ..protocol.story import Attempt, State, Story, spent
from .requests import QUEUED, Request, RequestState

if TYPE_CHECKING:
    from .house import House

KEPT: Final = 2048
"""Ended requests that can be explained: about a minute of a busy broker, days of a quiet one; 1 KiB each."""
_MOST_TOLD: Final = 20
_PHASES: Final[dict[RequestState, State]] = {
    RequestState.QUEUED: "queued",
    RequestState.LEASED: "dispatched",
    RequestState.STREAMING: "streaming",
}
_CANCELLED: Final = 499
_NO_META: Final[m.Ext] = {}


class Try(msgspec.Struct, eq=False):
    """An attempt that is over, in the broker's own time."""

    node_id: str
    dispatched_at: float
    from_unit: int
    end_unit: int
    first_at: float | None
    last_at: float | None
    ended_at: float
    told: m.Ext
    why: str


class Ended(msgspec.Struct, eq=False):
    """What is kept of a request: no body, no units."""

    user: str
    rid: bytes
    ext: m.Ext
    service: str
    is_stream: bool
    admitted_at: float
    ended_at: float
    queued_behind: int
    queued_why: str
    begun_elsewhere: int
    units: int
    tries: list[Try]
    ending: m.Error | None
    meta: m.Ext


class Stories:
    """Those of one broker."""

    __slots__ = ("_ended",)

    def __init__(self) -> None:
        self._ended: dict[tuple[str, bytes], Ended] = {}

    def close(self, request: Request, message: m.Final | m.Error, now: float) -> Ended:
        """Keep the story of a request that ends now; the oldest one makes room."""
        tries = request.past or []
        if request.state is not QUEUED:
            tries.append(current_try(request, now, ""))
        total_n, meta, ending = request.next_n, _NO_META, None
        if isinstance(message, m.Final):
            total_n, meta = message.total_n, message.meta
        else:
            ending = message
        ask, kept = request.ask, self._ended
        key = (request.user.name, ask.rid)
        kept.pop(key, None)  # so that the newest of equal ones stands last
        ended = kept[key] = Ended(
            request.user.name,
            ask.rid,
            ask.ext,
            ask.service,
            request.is_stream,
            request.admitted_at,
            now,
            request.queued_behind,
            request.queued_why,
            request.begun_elsewhere,
            total_n,
            tries,
            ending,
            meta,
        )
        if len(kept) > KEPT:
            del kept[next(iter(kept))]
        return ended

    def find(self, house: House, name: str, user: str | None, now: float) -> list[Story]:
        """Tell the stories of a rid (hex) or of a client's own request id, the newest first.

        Args:
            user: Whose requests may be told; None = everybody's.
        """
        live = [_tell_live(house, one, now) for one in _live(house, user) if _is_named(one.ask.rid, one.ask.ext, name)]
        ended = [
            _tell_ended(house, one, now)
            for one in reversed(self._ended.values())
            if user in (None, one.user) and _is_named(one.rid, one.ext, name)
        ]
        return (live + ended)[:_MOST_TOLD]


def current_try(request: Request, now: float, why: str) -> Try:
    """Describe the attempt that ends now."""
    node = request.last_node
    # A stream's deadline moves on with each unit, so it tells when the last one came.
    last_at = (
        request.deadline - request.ttl_s if request.is_stream and request.first_at is not None else request.first_at
    )
    return Try(
        node.node_id if node is not None else "",
        request.dispatched_at,
        request.from_unit,
        request.next_n,
        request.first_at,
        last_at,
        now,
        request.told,
        why,
    )


def timings(broker_id: str, one: Ended) -> m.Ext:
    """Return where the time of a request went, in microseconds, for a client that traces it (its FINAL's ext)."""
    attempts = _attempts(one.tries, one.admitted_at)
    parts = msgspec.structs.asdict(spent(one.ended_at - one.admitted_at, attempts))
    told: m.Ext = {name.removesuffix("_s") + "_us": round(1e6 * seconds) for name, seconds in parts.items()}
    told.update(broker=broker_id, attempts=len(attempts))
    if attempts:
        last = attempts[-1]
        told.update(node=last.node, device=last.device, batch=last.batch)
    return told


def request_id_of(rid: bytes, ext: m.Ext) -> str:
    """Return the name that the client gave the request, else the rid in hex."""
    name = ext.get("request_id")
    return name if isinstance(name, str) and name else rid.hex()


def _is_named(rid: bytes, ext: m.Ext, name: str) -> bool:
    return name in (rid.hex(), ext.get("request_id"))


def _live(house: House, user: str | None) -> Iterator[Request]:
    if user is None:
        return itertools.chain.from_iterable(one.requests.values() for one in house.users.values())
    known = house.users.get(user)
    return iter(known.requests.values() if known is not None else ())


def _tell_live(house: House, request: Request, now: float) -> Story:
    begun = request.admitted_at
    attempts = _attempts(request.past or [], begun)
    if request.offer is not None:
        running = current_try(request, now, "")
        running.node_id = request.offer.node.node_id
        told = _attempt(running, begun)
        attempts.append(msgspec.structs.replace(told, ended_s=None))
    return Story(
        broker_id=house.broker_id,
        rid=request.ask.rid.hex(),
        request_id=request_id_of(request.ask.rid, request.ask.ext),
        user=request.user.name,
        model=request.ask.service,
        is_stream=request.is_stream,
        state=_PHASES[request.state],
        ago_s=now - begun,
        age_s=now - begun,
        queued_behind=request.queued_behind if request.queued_behind >= 0 else None,
        queued_why=request.queued_why,
        begun_elsewhere=request.begun_elsewhere,
        units=request.next_n,
        attempts=attempts,
    )


def _tell_ended(house: House, one: Ended, now: float) -> Story:
    ending, reason, prompt_tokens = one.ending, one.meta.get("finish_reason"), one.meta.get("prompt_tokens")
    return Story(
        broker_id=house.broker_id,
        rid=one.rid.hex(),
        request_id=request_id_of(one.rid, one.ext),
        user=one.user,
        model=one.service,
        is_stream=one.is_stream,
        state="done" if ending is None else "cancelled" if ending.code == _CANCELLED else "failed",
        ago_s=now - one.admitted_at,
        age_s=one.ended_at - one.admitted_at,
        queued_behind=one.queued_behind if one.queued_behind >= 0 else None,
        queued_why=one.queued_why,
        begun_elsewhere=one.begun_elsewhere,
        units=one.units,
        attempts=_attempts(one.tries, one.admitted_at),
        code=ending.code if ending is not None else 0,
        reason=ending.reason if ending is not None else "",
        text=ending.text if ending is not None else "",
        finish_reason=reason if isinstance(reason, str) else "",
        prompt_tokens=prompt_tokens if type(prompt_tokens) is int else 0,
    )


def _attempts(tries: Iterable[Try], begun: float) -> list[Attempt]:
    return [_attempt(one, begun) for one in tries]


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
        why=one.why,
        device=device if isinstance(device, str) else "",
        batch=batch if type(batch) is int else 0,
        wait_s=_seconds(one.told, "wait_us"),
        prefill_s=_seconds(one.told, "prefill_us"),
    )


def _seconds(told: m.Ext, name: str) -> float | None:
    value = told.get(name)
    return value / 1e6 if type(value) is int and value >= 0 else None
