"""Questions to the broker itself (QUERY, ADMIN), and how their answers are read. No socket, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from ..protocol import admin as administration
from ..protocol import messages as m
from ..protocol import request_trace
from ..protocol import snapshot as snapshots
from ..protocol.admin import AdminOutcome
from ..protocol.errors import ErrorKind, ProtocolError, request_error
from ..protocol.limits import MAX_EXT_VALUE_CHARS
from ..protocol.request_trace import RequestTrace
from ..protocol.snapshot import ServiceStatus, Snapshot
from . import arguments

A = TypeVar("A")
Answer = m.Welcome | m.Status
_services: Final = msgspec.msgpack.Decoder(list[ServiceStatus])


@dataclass(frozen=True, slots=True)
class QuerySpec(Generic[A]):
    """What to send (nothing at all: only a session is wanted), and what the answer means."""

    message: Callable[[int], m.Query | m.Admin] | None
    read: Callable[[Answer], A]


def connection() -> QuerySpec[m.Welcome]:
    """Wait for a session."""
    return QuerySpec(None, _read_welcome)


def status() -> QuerySpec[Snapshot]:
    """Ask for the whole state."""
    return QuerySpec(lambda qid: m.Query(qid, "status"), _read_snapshot)


def explain(name: str) -> QuerySpec[list[RequestTrace]]:
    """Ask what happened to a request, by its rid in hex or by the name its client gave it."""
    asked = arguments.text("request", name, most=MAX_EXT_VALUE_CHARS)
    return QuerySpec(lambda qid: m.Query(qid, "explain", {"request": asked}), _read_stories)


def services() -> QuerySpec[list[ServiceStatus]]:
    """Ask which services there are."""
    return QuerySpec(lambda qid: m.Query(qid, "services"), _read_services)


def drain(node_id: str) -> QuerySpec[AdminOutcome]:
    """Ask for a node to be drained; for admins alone."""
    node = arguments.text("node_id", node_id, most=MAX_EXT_VALUE_CHARS)
    return QuerySpec(lambda qid: m.Admin(qid, "drain", {"node": node}), _read_outcome)


def _read_welcome(answer: Answer) -> m.Welcome:
    assert isinstance(answer, m.Welcome)
    return answer


def _read_status(answer: Answer) -> m.Status:
    assert isinstance(answer, m.Status)
    if answer.schema == snapshots.TOO_LARGE:
        raise request_error(
            ErrorKind.TOO_LARGE, str(answer.ext.get("text") or "the broker's answer does not fit a frame")
        )
    return answer


def _read_outcome(answer: Answer) -> AdminOutcome:
    """Read what was done. Raises RequestError where it was not."""
    try:
        outcome = administration.decode(_read_status(answer).body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the broker's answer cannot be read; do both sides have one version? ({error})") from None
    refusal = outcome.error()
    if refusal is not None:
        raise refusal
    return outcome


def _read_snapshot(answer: Answer) -> Snapshot:
    try:
        return snapshots.decode(_read_status(answer).body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the broker's status cannot be read; do both sides have one version? ({error})") from None


def _read_stories(answer: Answer) -> list[RequestTrace]:
    said = _read_status(answer)
    if said.schema != request_trace.SCHEMA:
        raise ProtocolError("this broker is too old to explain requests; update it")
    try:
        return request_trace.decode(said.body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the broker's answer cannot be read; do both sides have one version? ({error})") from None


def _read_services(answer: Answer) -> list[ServiceStatus]:
    """Read the list alone or out of a whole snapshot."""
    if _read_status(answer).schema == snapshots.SCHEMA:
        return _read_snapshot(answer).services
    try:
        return _services.decode(_read_status(answer).body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the broker's services cannot be read ({error})") from None
