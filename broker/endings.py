"""How requests end: exactly one terminal message for each, told to every reader and kept for those who ask again."""

from __future__ import annotations

from ..protocol import messages as m
from ..protocol.errors import Kind
from .bounds import OVERHEAD_BYTES
from .delivery import Delivery
from .house import House, error
from .leases import fence, release, settle_and_wake
from .outcomes import Outcome, fingerprint
from .requests import TRANSITIONS, Reader, Request, RequestEvent, RequestState


class Endings:
    """Ends requests and readers."""

    __slots__ = ("_delivery", "_house")

    def __init__(self, house: House, delivery: Delivery) -> None:
        self._house = house
        self._delivery = delivery

    def end(self, request: Request, message: m.Final | m.Error, now: float) -> None:
        """End a request that holds no lease (any more)."""
        house = self._house
        was_queued = request.state is RequestState.QUEUED
        request.state = TRANSITIONS[request.state][RequestEvent.ENDED]
        if was_queued:
            request.service.queue.discard(request)
        house.request_timers.clear(request)
        del request.user.requests[request.ask.rid]
        house.held_bytes -= request.held_bytes
        self._keep(request, message, now)
        for reader in request.readers:
            self._delivery.end(reader, message, now)
        request.readers.clear()
        request.journal = None

    def fail(
        self, request: Request, kind: Kind, text: str, now: float, *, retry_after_s: float = 0.0, reason: str = ""
    ) -> None:
        """End a request with an error, wherever it is; a node that works on it is told to stop."""
        node = None
        if request.offer is not None:
            lease = request.lease
            node = release(request)
            fence(self._house, node, lease, reason or kind.value)
        resume_n = request.next_n if request.is_stream else 0
        ending = error(request.ask.rid, kind, text, retry_after_s=retry_after_s, resume_n=resume_n)
        self.end(request, ending, now)
        if node is not None:
            settle_and_wake(self._house, node)

    def dismiss_reader(self, reader: Reader, kind: Kind, text: str, now: float) -> None:
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
            self.fail(request, Kind.CANCELLED, text, now, reason=text[:64])

    def _keep(self, request: Request, message: m.Final | m.Error, now: float) -> None:
        journal = request.journal if request.is_stream else None
        kept: m.Final | m.Error | None = message
        if type(message) is m.Error:
            if message.retryable:
                return  # another try must run
            if message.code == 499:
                if journal is None or not request.is_resumable or not journal.is_whole:
                    return
                kept = None  # only what there is to go on from
        ask = request.ask
        size = OVERHEAD_BYTES + (journal.size_bytes if journal is not None else 0)
        if type(message) is m.Final:
            size += len(message.body)
        self._house.outcomes.add(
            Outcome(
                user=request.user,
                rid=ask.rid,
                service=ask.service,
                fingerprint=fingerprint(ask.body),
                is_stream=request.is_stream,
                message=kept,
                journal=journal,
                revision=request.revision,
                ended_at=now,
                held_bytes=size,
            )
        )
