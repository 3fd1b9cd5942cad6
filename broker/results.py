"""What nodes answer: units, results, errors. Each is welcome only under a lease that still lives."""

from __future__ import annotations

from ..protocol import messages as m
from ..protocol.errors import TABLE, ErrorKind, kind_of
from .completion import dismiss, end
from .counters import LossReason
from .delivery import send_units
from .dispatch import lose, take_back
from .journal import Journal
from .leases import fence
from .nodes import Node
from .requests import LEASED, Request
from .state import BrokerState, error


def take_partial(state: BrokerState, node: Node, message: m.WorkerPartial, now: float) -> None:
    """Take units of a stream, or of a unary request that may have to go on elsewhere."""
    request = state.leases.get(message.lease)
    if request is None or request.node is not node or message.epoch != node.epoch:
        reject_late(state, node, message.lease)
        return
    if not message.n:
        if message.ext.get("progress") is True:  # no new unit, but its prompt is being read, or it comes nearer
            request.service.moved_at = node.answered_at = now
            request.move_on(now)
        return
    if message.seq != request.next_n:
        _lose_for_gap(state, node, request, message.seq, now)
        return
    if message.n > len(message.body):
        _lose_for_overclaim(state, node, request, message.n, now)
        return
    request.service.moved_at = now
    chunk = _deliver(state, node, request, message, now)
    state.counters.partials += 1
    if request.ask.flags & m.STREAM:
        for subscriber in send_units(state, request, message, chunk, now):
            text = "the stream is read too slowly: more is unread than may be kept"
            dismiss(state, subscriber, ErrorKind.SLOW_READER, text, now)


def take_final(state: BrokerState, node: Node, message: m.WorkerFinal, now: float) -> None:
    """Take the end of a request."""
    if message.epoch == node.epoch and message.dispatch_limit > node.announced_limit:
        node.allow(message.dispatch_limit)
    request = state.leases.get(message.lease)
    if request is None or request.node is not node or message.epoch != node.epoch:
        reject_late(state, node, message.lease)
        return
    if message.total_n != request.next_n and request.ask.flags & m.STREAM:
        _lose_for_gap(state, node, request, message.total_n, now)
        return
    if message.total_n > request.next_n + len(message.body):
        _lose_for_overclaim(state, node, request, message.total_n, now)
        return
    _trust(state, node, request, now)
    node.completed += 1
    request.service.moved_at = now
    if message.ext:
        request.take_report(message.ext)
    end(state, request, m.Final(request.ask.rid, message.total_n, message.meta, message.body), now)


def take_error(state: BrokerState, node: Node, message: m.WorkerError, now: float) -> None:
    """Take the failure of an attempt: it goes elsewhere, or it is the end."""
    kind = kind_of(message.code, message.reason)
    if message.epoch == node.epoch and kind is not ErrorKind.NO_SLOT:
        node.allow(message.dispatch_limit)
    request = state.leases.get(message.lease)
    if request is None or request.node is not node or message.epoch != node.epoch:
        reject_late(state, node, message.lease)
        return
    if kind is ErrorKind.NO_SLOT and request.state is LEASED:
        state.counters.refused_by_node += 1
        node.refuse()
        take_back(state, request)
        return
    _trust(state, node, request, now)
    node.failed += 1
    if TABLE[kind].redispatch:
        why = LossReason.HANDED_BACK if kind is ErrorKind.DRAINING else LossReason.ENGINE
        lose(state, request, now, message.text, why, crashes=_crashes(state, kind, message.ext))
        return
    resume_n = request.next_n if request.is_stream else 0
    end(state, request, error(request.ask.rid, kind, message.text, resume_n=resume_n), now)


def _crashes(state: BrokerState, kind: ErrorKind, ext: m.Ext) -> int:
    """Return how many engines of a node died of a request; one that does not say so lost one."""
    crashes = ext.get("crashes", 1)
    if kind is not ErrorKind.ENGINE_RESTARTED or not isinstance(crashes, int):
        return 0
    return max(0, min(crashes, state.bounds.crashes))


def _deliver(state: BrokerState, node: Node, request: Request, message: m.WorkerPartial, now: float) -> int:
    """Note the progress, keep the units; return the number of the chunk."""
    if request.first_at is None:
        _trust(state, node, request, now)
        if not request.next_n and not request.was_lost:
            request.service.first_token.add(now - request.admitted_at)
        request.begin_answer(message.n, message.ext, now)
    elif node.silences:
        _trust(state, node, request, now)
    node.answered_at = now
    request.deliver(message.seq, message.n, now)
    if not request.ask.flags & (m.STREAM | m.RESUMABLE):
        return 0
    journal = request.journal
    if journal is None:
        if message.seq:
            return 0  # a unary one whose journal grew too large: it would begin anew
        journal = Journal()
        request.keep_journal(journal)
    chunk = journal.end
    grown = journal.append(message.seq, message.n, message.body)
    size = journal.size_bytes
    if size > state.bounds.prefix_bytes:
        _shorten(request, journal)
        grown -= size - journal.size_bytes
    state.memory.hold(request, grown)
    return chunk


def _shorten(request: Request, journal: Journal) -> None:
    """Give up the part of a long prefix that every subscriber has been sent; what is unsent stays."""
    unsent = [subscriber.cursor for subscriber in request.subscribers if subscriber.is_lagging]
    if request.is_stream:
        journal.trim(min(unsent, default=journal.end - 1))  # the last one is about to be sent
    else:
        journal.trim(journal.end)
        request.keep_journal(None)


def _trust(state: BrokerState, node: Node, request: Request, now: float) -> None:
    """Note that a node answers what it is given: it may have more of it."""
    if request.state is LEASED:
        request.service.note_first(now - request.dispatched_at, request.size)
    if node.silences:
        state.events.record("recovered", node.node_id, "answers again", now)
    node.answered_at = now
    node.earn()


def _lose_for_overclaim(state: BrokerState, node: Node, request: Request, units: int, now: float) -> None:
    """End an attempt that counts more units than it sends bytes: its node is mistaken, or worse."""
    text = f"node {node.node_id} claims {units} units in an answer that is too small for them"
    _lose_for_distrust(state, node, request, text, now)


def _lose_for_gap(state: BrokerState, node: Node, request: Request, got: int, now: float) -> None:
    """Something of a stream was lost or repeated on the way: this attempt cannot be trusted any more."""
    _lose_for_distrust(state, node, request, f"unit {request.next_n} was due, {got} came from node {node.node_id}", now)


def _lose_for_distrust(state: BrokerState, node: Node, request: Request, text: str, now: float) -> None:
    state.counters.stream_gaps += 1
    lease = request.lease
    lose(state, request, now, text, LossReason.GAP)
    fence(state, node, lease, "gap")


def reject_late(state: BrokerState, node: Node | None, lease: int) -> None:
    """Count an answer under a lease that is void; a node that is registered is told so."""
    state.counters.late_reply += 1
    if node is not None:
        fence(state, node, lease, "stale")
