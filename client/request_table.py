"""All live requests of a client: which wait to be sent, which back off after a refusal, whose time is up when.

Nothing here decides about brokers: `core` does. No socket, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, ZmqrtError
from ..protocol.limits import MAX_FLEET_SERVICES
from .connection import BrokerConnection
from .queue_place import QueuePlace
from .requests import ClientRequest, ClientRequestState, Sink
from .response import Event
from .timers import Timers

GRACE_S: Final = 0.5
"""The broker's own 504 says more than ours, so it gets this long to arrive."""


class RequestTable:
    """The records. `events` is emptied by the shell, which hands each event to its sink."""

    def __init__(self, max_waiting: int) -> None:
        self.events: list[tuple[Sink, Event]] = []
        self.live: dict[bytes, ClientRequest] = {}
        self.queue: OrderedDict[bytes, ClientRequest] = OrderedDict()
        """Ready to be sent, first come first."""
        self.moved_at = 0.0
        """When any of them made progress: those that wait came nearer to their turn then."""
        self._moved_at: dict[str, float] = {}
        """The same by service, for what a broker's queue for it had no room for."""
        self._max_waiting = max_waiting
        self._deadlines: Timers[ClientRequest] = Timers()
        self._back_offs: Timers[ClientRequest] = Timers()

    def admit(self, request: ClientRequest) -> bool:
        """Take a new request in; False if it was refused, or joined the same one that is under way."""
        rid = request.call.rid
        twin = self.live.get(rid)
        if twin is not None:
            if twin.is_duplicate_of(request):
                return self._attach(twin, request.readers[0])
            text = "this client has another request of that id under way; wait for it, or use another id"
            return self._refuse(request, ErrorKind.CONFLICT, text)
        if len(self.queue) >= self._max_waiting:
            text = f"{self._max_waiting} requests wait in this client already; send fewer at a time"
            return self._refuse(request, ErrorKind.QUEUE_FULL, text)
        self.live[rid] = request
        self._deadlines.add(request.due_at, request)
        return True

    def _refuse(self, request: ClientRequest, kind: ErrorKind, text: str) -> bool:
        request.move(ClientRequestState.FAILED)
        self._tell(request, request.error(kind, text))
        return False

    def _attach(self, twin: ClientRequest, reader: Sink) -> bool:
        """Let one more read what is under way, from its beginning."""
        self.events.extend((reader, partial) for partial in twin.journal or ())
        twin.readers.append(reader)
        return False

    def detach(self, request: ClientRequest, reader: Sink | None, kind: ErrorKind, text: str) -> bool:
        """Let one of several readers go; False when there is no other, so that the request itself has to end."""
        if reader is None:
            return False
        if reader not in request.readers:
            return True  # it was refused, or has left already
        if len(request.readers) == 1:
            return False
        request.readers.remove(reader)
        self.events.append((reader, request.error(kind, text)))
        return True

    def enqueue(self, request: ClientRequest) -> None:
        """Put a request at the end of the queue."""
        self.queue[request.call.rid] = request

    def at(self, connection: BrokerConnection, rid: bytes) -> ClientRequest | None:
        """Return the request of that id if it is with that broker now: what an earlier one says late is not heard."""
        request = self.live.get(rid)
        return request if request is not None and request.connection is connection else None

    def requeue(self, connection: BrokerConnection, *, is_forgotten: bool = False) -> None:
        """Put what a lost session leaves in front of the queue, in its order; `is_forgotten`: by its broker, too."""
        for rid in reversed(connection.take_outstanding()):
            request = self.live[rid]
            request.connection = None
            request.was_resent = False
            request.is_resyncing = False
            if is_forgotten:
                request.known_to = None  # it may have been cancelled there
            request.move(ClientRequestState.WAITING)
            self.queue[rid] = request
            self.queue.move_to_end(rid, last=False)

    def moved(self, request: ClientRequest, now: float) -> None:
        """Note that a request came further."""
        if len(self._moved_at) >= MAX_FLEET_SERVICES:
            self._moved_at.clear()  # years of names; who backs off then has less time, and not none
        self.moved_at = self._moved_at[request.call.service] = now

    def take_turn(self, request: ClientRequest) -> None:
        """Count the time of what leaves the line from when others came further: it is its turn because of them.

        What a broker's full queue sent back has had that already, and follows its service.
        """
        if not request.refusals:
            request.move_on(self.moved_at)

    def follow_service(self, request: ClientRequest) -> None:
        """Count the time of a refused request from the last progress of others of its service."""
        request.move_on(self._moved_at.get(request.call.service, 0.0))

    def back_off(self, request: ClientRequest, wake_at: float) -> None:
        """Let a refused request wait before it is queued again."""
        request.move(ClientRequestState.BACKING_OFF)
        request.wake_at = wake_at
        request.refusals += 1
        self._back_offs.add(wake_at, request)

    def wake(self, now: float) -> None:
        """Queue those whose back-off is over."""
        for request in self._back_offs.due(now):
            if request.state is ClientRequestState.BACKING_OFF and request.wake_at <= now:
                request.move(ClientRequestState.WAITING)
                self.enqueue(request)

    def expired(self, now: float) -> Iterator[ClientRequest]:
        """Yield the requests whose time is up; the others are looked at again when theirs is."""
        for request in self._deadlines.due(now):
            if request.state is ClientRequestState.WAITING:
                request.move_on(self.moved_at)
            limit = request.due_at + (GRACE_S if request.connection is not None else 0.0)
            if limit <= now:
                yield request
            else:
                self._deadlines.add(limit, request)

    def next_deadline(self) -> float:
        """When `wake` or `expired` has something to do."""
        return min(self._deadlines.first(), self._back_offs.first())

    def deliver(self, request: ClientRequest, partial: m.Partial) -> None:
        """Hand units to whoever reads."""
        for reader in request.readers:
            self.events.append((reader, partial))

    def tell_place(self, request: ClientRequest, place: QueuePlace) -> None:
        """Tell whoever reads where it stands in its queue."""
        for reader in request.readers:
            self.events.append((reader, place))

    def finish(self, request: ClientRequest, final: m.Final) -> None:
        """End with a result."""
        self._end(request, ClientRequestState.DONE, final)

    def fail(self, request: ClientRequest, error: ZmqrtError) -> None:
        """End without one."""
        self._end(request, ClientRequestState.FAILED, error)

    def cancel(self, request: ClientRequest, kind: ErrorKind, text: str) -> None:
        """End because somebody gave it up."""
        self._end(request, ClientRequestState.CANCELLED, request.error(kind, text))

    def _end(self, request: ClientRequest, state: ClientRequestState, event: Event) -> None:
        rid = request.call.rid
        request.move(state)
        request.leave()
        del self.live[rid]
        self._deadlines.drop(request)
        if request.refusals:
            self._back_offs.drop(request)
        self.queue.pop(rid, None)
        self._tell(request, event)

    def _tell(self, request: ClientRequest, event: Event) -> None:
        for reader in request.readers:
            self.events.append((reader, event))
