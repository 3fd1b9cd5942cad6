"""How requests end: exactly one terminal message for each, told to every reader and kept for those who ask again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from ..protocol.snapshot import SCHEMA_VERSION, TOO_LARGE
from .bounds import OVERHEAD_BYTES
from .counters import Stage
from .delivery import Delivery
from .state import House, error
from .leases import fence, release, settle_and_wake
from .result_cache import Outcome, fingerprint
from .requests import OVER, QUEUED, TRANSITIONS, Reader, Request, RequestState
from .history import timings

_CANCELLED: Final = 499
_UNSENDABLE: Final = "the broker has an answer that no message can carry; see its log"
_NO_FAILURES: Final = frozenset({ErrorKind.CANCELLED, ErrorKind.BROKER_LOST})
"""Nobody waits any more, or its client goes on with it from its own copy."""
_STAGES: Final = {
    RequestState.QUEUED: Stage.QUEUED,
    RequestState.LEASED: Stage.PREFILL,
    RequestState.STREAMING: Stage.DECODE,
}


class Endings:
    """Ends requests and readers."""

    __slots__ = ("_delivery", "_house")

    def __init__(self, house: House, delivery: Delivery) -> None:
        self._house = house
        self._delivery = delivery

    def end(self, request: Request, message: m.Final | m.Error, now: float) -> None:
        """End a request that holds no lease (any more)."""
        house, rid = self._house, request.ask.rid
        stage = request.state
        if "traceparent" in request.ext:
            message = msgspec.structs.replace(message, ext=timings(house.broker_id, request, now))
        if type(message) is m.Final:
            request.next_n = message.total_n
        house.stories.close(request, message, now)
        request.state = TRANSITIONS[stage][OVER]
        if stage is QUEUED:
            request.service.queue.discard(request)
        house.request_timers.clear(request)
        del request.user.requests[rid]
        house.held_bytes -= request.held_bytes
        if type(message) is m.Final:
            self._keep(request, message, len(message.body), now)
        elif type(message) is m.Error and _is_worth_keeping(request, message):
            # Of a cancelled one there is no answer to give again, only what there is to go on from.
            self._keep(request, None if message.code == _CANCELLED else message, 0, now)
        for reader in request.readers:
            self._delivery.end(reader, message, now)
        request.readers.clear()
        request.journal = None

    def fail(
        self, request: Request, kind: ErrorKind, text: str, now: float, *, retry_after_s: float = 0.0, reason: str = ""
    ) -> None:
        """End a request with an error, wherever it is; a node that works on it is told to stop."""
        node = None
        if request.offer is not None:
            lease = request.lease
            node = release(request)
            fence(self._house, node, lease, reason or kind.value)
        if kind not in _NO_FAILURES:
            self._house.note_failure(kind, text, request.ask, now)
        resume_n = request.next_n if request.is_stream else 0
        ending = error(request.ask.rid, kind, text, retry_after_s=retry_after_s, resume_n=resume_n)
        self.end(request, ending, now)
        if node is not None:
            settle_and_wake(self._house, node)

    def dismiss_reader(self, reader: Reader, kind: ErrorKind, text: str, now: float) -> None:
        """End one reader with an error; a request that nobody reads any more is cancelled with it."""
        request = reader.request
        resume_n = self._delivery.next_unit(reader, request)
        self._house.tell_client(reader.session, error(reader.rid, kind, text, resume_n=resume_n))
        self.abandon(reader, text, now)

    def abandon(self, reader: Reader, text: str, now: float) -> None:
        """Drop a reader without a word; a request that nobody reads any more is cancelled with it."""
        request = reader.request
        reader.request = None
        self._delivery.drop(reader)
        if request is None:
            return
        request.readers.remove(reader)
        if not request.readers:
            self._house.counters.cancelled += 1
            self._house.tallies.cancellations[_STAGES[request.state].value] += 1
            self.fail(request, ErrorKind.CANCELLED, text, now, reason=text[:64])

    def replace_unpackable(self, is_worker: bool, peer: bytes, messages: Sequence[m.Message], now: float) -> None:  # noqa: FBT001
        """Say to a peer that what it was to be told cannot be sent: that request, or that question, ends here."""
        house = self._house
        node = house.nodes.get(peer) if is_worker else None
        session = None if is_worker else house.sessions.get(peer)
        for message in messages:
            if node is not None and isinstance(message, m.Dispatch):
                request = node.running.get(message.lease)
                if request is not None:
                    self.fail(request, ErrorKind.TOO_LARGE, _UNSENDABLE, now)
            elif session is not None and isinstance(message, m.Status):
                house.tell_client(session, m.Status(message.qid, TOO_LARGE, SCHEMA_VERSION, b"", {"text": _UNSENDABLE}))
            elif session is not None and isinstance(message, m.Partial | m.Final | m.Error):
                reader = session.readers.get(message.rid) if message.rid is not None else None
                if reader is not None:
                    self.abandon(reader, _UNSENDABLE, now)
                house.tell_client(session, error(message.rid, ErrorKind.TOO_LARGE, _UNSENDABLE))

    def _keep(self, request: Request, message: m.Final | m.Error | None, body_bytes: int, now: float) -> None:
        ask = request.ask
        is_stream = bool(ask.flags & m.STREAM)
        journal = request.journal if is_stream else None
        size = OVERHEAD_BYTES + body_bytes + (journal.size_bytes if journal is not None else 0)
        digest = fingerprint(ask.body)
        revision = request.revision
        self._house.outcomes.add(
            Outcome(request.user, ask.rid, ask.service, digest, is_stream, message, journal, revision, now, size)
        )


def _is_worth_keeping(request: Request, message: m.Error) -> bool:
    """Say whether an error is final: one that invites another try is not, since that try must run."""
    if message.code != _CANCELLED:
        return not message.retryable
    return request.is_stream and request.is_resumable and request.journal is not None and request.journal.is_whole
