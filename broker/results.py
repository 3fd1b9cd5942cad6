"""What nodes answer: units, results, errors. Each is welcome only under a lease that still lives."""

from __future__ import annotations

from ..protocol import messages as m
from ..protocol.errors import TABLE, ErrorKind, kind_of
from .completion import Endings
from .counters import LossReason
from .delivery import Delivery
from .dispatch import Dispatcher
from .journal import Journal
from .leases import fence, release
from .nodes import Node
from .requests import TRANSITIONS, UNITS, Request, RequestState
from .state import BrokerState, error


class Results:
    """Takes results from nodes to the requests they are for."""

    __slots__ = ("_delivery", "_dispatcher", "_endings", "_state")

    def __init__(self, state: BrokerState, delivery: Delivery, endings: Endings, dispatcher: Dispatcher) -> None:
        self._state = state
        self._delivery = delivery
        self._endings = endings
        self._dispatcher = dispatcher

    def partial(self, node: Node, message: m.WorkerPartial, now: float) -> None:
        """Take units of a stream, or of a unary request that may have to go on elsewhere."""
        request = node.running.get(message.lease)
        if request is None or message.epoch != node.epoch:
            self._late(node, message.lease)
            return
        if not message.n:
            if message.ext.get("progress") is True:  # no new unit, but its prompt is being read, or it comes nearer
                request.service.moved_at = node.answered_at = now
                request.move_on(now)
            return
        if message.seq != request.next_n:
            self._gap(node, request, message.seq, now)
            return
        if message.n > len(message.body):
            self._overclaim(node, request, message.n, now)
            return
        request.service.moved_at = now
        chunk = self._record(node, request, message, now)
        self._state.counters.partials += 1
        if request.is_stream:
            for subscriber in self._delivery.units(request, message, chunk, now):
                self._state.counters.slow_readers += 1
                text = "the stream is read too slowly: more is unread than may be kept"
                self._endings.dismiss_reader(subscriber, ErrorKind.SLOW_READER, text, now)

    def final(self, node: Node, message: m.WorkerFinal, now: float) -> None:
        """Take the end of a request."""
        if message.epoch == node.epoch and message.dispatch_limit > node.announced_limit:
            node.allow(message.dispatch_limit)
        request = node.running.get(message.lease)
        if request is None or message.epoch != node.epoch:
            self._late(node, message.lease)
            return
        if message.total_n != request.next_n and request.ask.flags & m.STREAM:
            self._gap(node, request, message.total_n, now)
            return
        if message.total_n > request.next_n + len(message.body):
            self._overclaim(node, request, message.total_n, now)
            return
        self._heard_of(node, request, now)
        offer = request.offer
        release(request)
        node.completed += 1
        self._state.counters.completed += 1
        service, first_at, past = request.service, request.first_at, request.past
        service.moved_at = now
        queued_s = (request.dispatched_at if past is None else past[0].dispatched_at) - request.admitted_at
        context = offer.spec.context if offer is not None else 0
        service.note_result(message.meta, context, queued_s, now - request.dispatched_at, now - request.admitted_at)
        if message.ext:
            request.report = message.ext
        further = message.total_n - request.from_unit - request.first_n
        if first_at is not None and further > 0:
            service.token_time.add((now - first_at) / further)
        self._endings.end(request, m.Final(request.ask.rid, message.total_n, message.meta, message.body), now)

    def error(self, node: Node, message: m.WorkerError, now: float) -> None:
        """Take the failure of an attempt: it goes elsewhere, or it is the end."""
        kind = kind_of(message.code, message.reason)
        if message.epoch == node.epoch and kind is not ErrorKind.NO_SLOT:
            node.allow(message.dispatch_limit)
        request = node.running.get(message.lease)
        if request is None or message.epoch != node.epoch:
            self._late(node, message.lease)
            return
        if kind is ErrorKind.NO_SLOT and request.state is RequestState.LEASED:
            self._state.counters.refused_by_node += 1
            node.refuse()
            self._dispatcher.unsent(request)
            return
        self._heard_of(node, request, now)
        node.failed += 1
        row = TABLE[kind]
        if row.redispatch:
            why = LossReason.HANDED_BACK if kind is ErrorKind.DRAINING else LossReason.ENGINE
            self._dispatcher.lose(request, now, message.text, why, crashes=self._crashes(kind, message.ext))
            return
        release(request)
        self._state.note_failure(kind, message.text, request.ask, now)
        resume_n = request.next_n if request.is_stream else 0
        self._endings.end(request, error(request.ask.rid, kind, message.text, resume_n=resume_n), now)

    def _crashes(self, kind: ErrorKind, ext: m.Ext) -> int:
        """Return how many engines of a node died of a request; one that does not say so lost one."""
        told = ext.get("crashes", 1)
        if kind is not ErrorKind.ENGINE_RESTARTED or not isinstance(told, int):
            return 0
        return max(0, min(told, self._state.bounds.crashes))

    def _record(self, node: Node, request: Request, message: m.WorkerPartial, now: float) -> int:
        """Note the progress, keep the units; return the number of the chunk."""
        if request.first_at is None:
            self._heard_of(node, request, now)
            self._begin(request, message, now)
        elif node.silences:
            self._heard_of(node, request, now)
        node.answered_at = now
        request.state = TRANSITIONS[request.state][UNITS]
        request.next_n = message.seq + message.n
        request.attempts = request.crashes = 0
        flags = request.ask.flags
        if request.is_patient:
            request.deadline = now + request.ttl_s
            if flags & m.STREAM:
                request.announced_deadline = request.deadline  # its subscribers see the units
        if request.revision is None and request.offer is not None:
            request.revision = request.offer.spec.revision
        if not flags & (m.STREAM | m.RESUMABLE):
            return 0
        journal = request.journal
        if journal is None:
            if message.seq:
                return 0  # a unary one whose journal grew too large: it would begin anew
            journal = request.journal = Journal()
        chunk = journal.end
        grown = journal.append(message.seq, message.n, message.body)
        size = journal.size_bytes
        if size > self._state.bounds.prefix_bytes:
            self._shorten(request, journal)
            grown -= size - journal.size_bytes
        request.held_bytes += grown
        self._state.held_bytes += grown
        return chunk

    def _begin(self, request: Request, message: m.WorkerPartial, now: float) -> None:
        request.first_at = now
        request.first_n = message.n
        request.report = message.ext
        if not request.next_n and request.past is None:
            request.service.first_token.add(now - request.admitted_at)

    def _shorten(self, request: Request, journal: Journal) -> None:
        """Give up the part of a long prefix that every subscriber has been sent; what is unsent stays."""
        unsent = [subscriber.cursor for subscriber in request.subscribers if subscriber.is_lagging]
        if request.is_stream:
            journal.trim(min(unsent, default=journal.end - 1))  # the last one is about to be sent
        else:
            journal.trim(journal.end)
            request.journal = None

    def _heard_of(self, node: Node, request: Request, now: float) -> None:
        """Note that a node answers what it is given: it may have more of it."""
        if request.state is RequestState.LEASED:
            request.service.note_first(now - request.dispatched_at, request.size)
        if node.silences:
            self._state.events.note("recovered", node.node_id, "answers again", now)
        node.answer(now)

    def _overclaim(self, node: Node, request: Request, units: int, now: float) -> None:
        """End an attempt that counts more units than it sends bytes: its node is mistaken, or worse."""
        text = f"node {node.node_id} claims {units} units in an answer that is too small for them"
        self._distrust(node, request, text, now)

    def _gap(self, node: Node, request: Request, got: int, now: float) -> None:
        """Something of a stream was lost or repeated on the way: this attempt cannot be trusted any more."""
        self._distrust(node, request, f"unit {request.next_n} was due, {got} came from node {node.node_id}", now)

    def _distrust(self, node: Node, request: Request, text: str, now: float) -> None:
        self._state.counters.stream_gaps += 1
        lease = request.lease
        self._dispatcher.lose(request, now, text, LossReason.GAP)
        fence(self._state, node, lease, "gap")

    def _late(self, node: Node, lease: int) -> None:
        self._state.counters.late_reply += 1
        fence(self._state, node, lease, "stale")
