"""The broker's decisions, with no socket, clock, thread, chance or log inside: events in, messages out.

broker.handle(side, peer, messages, now, user)     an envelope came
broker.bad_input(side, peer, bad, now)             one came that could not be read, or a part of it
broker.peer_gone(side, peer, now)                  a connection is gone
broker.send_failed(side, peer, messages, why, now) these could not be sent
broker.tick(now)                                   time has passed; due at next_deadline()
broker.drain(now)                                  take nothing more, finish what is here
broker.out                                         what to send now: (side, peer, message); take it after each call
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import cast

from ..protocol import messages as m
from ..protocol.codec import BadMessage
from ..protocol.errors import ErrorKind, ProtocolError, clip
from ..protocol.snapshot import EventKind, Snapshot
from ..protocol.timing import Timing
from .availability import forget, wait_until
from .bounds import Bounds
from .client_handler import handle_client
from .completion import abandon_unpackable, dismiss, fail
from .counters import Counters
from .delivery import acknowledge, next_acknowledgement
from .dispatch import end_grace, expire, pump, take_back
from .leases import reindex
from .liveness import check, disconnect, leave
from .nodes import NodeState
from .rate_limits import full_bucket
from .requests import Request, RequestState
from .services import Service
from .session_lifecycle import check_session, close_session, lose_connection, send_away
from .state import CLIENTS, WORKERS, BrokerState, Ids, Out, Side, error
from .status import StatusView, snapshot
from .worker_handler import handle_worker

__all__ = ["Bounds", "Broker", "Out", "SendFailure", "Side"]


class SendFailure(enum.Enum):
    """Why messages could not be sent."""

    UNREACHABLE = "the peer is gone"
    FULL = "the peer takes nothing, and too much waits for it"
    UNPACKABLE = "they are too large, or hold what no message can carry"


class Broker:
    """One broker."""

    def __init__(
        self,
        timing: Timing,
        bounds: Bounds,
        ids: Ids,
        *,
        broker_id: str,
        broker_epoch: int,
        now: float,
        unix_s: float = 0.0,
        is_admin: Callable[[str], bool] = lambda user: not user,
        is_bridge: Callable[[str], bool] = lambda user: not user,
    ) -> None:
        self.state = BrokerState(timing, bounds, ids, broker_id, broker_epoch, now, unix_s, is_admin, is_bridge)
        """The tables; for looking in, only their owners write."""
        self._status = StatusView()
        self._version_answers = full_bucket(10.0, 20.0, now)
        self.out: list[Out] = self.state.out
        self.version_answers: list[tuple[Side, bytes]] = []
        """Peers of another major version; the shell answers them in the form that every version can read."""

    # --- events ----------------------------------------------------------------------------------------------------

    def handle(self, side: Side, peer: bytes, messages: Sequence[m.Message], now: float, user: str = "") -> None:
        """Act on the messages of one envelope. `user` is the principal of the key it came under."""
        state = self.state
        if side is WORKERS:
            if state.worker_strikes.is_muted(peer, now):
                return
            node = state.nodes.get(peer)
            if node is not None and node.user != user:
                leave(state, node, now)  # the routing id has a new owner
            is_calm = handle_worker(state, peer, cast("Sequence[m.FromWorker]", messages), now, user)
        else:
            if state.client_strikes.is_muted(peer, now):
                return
            session = state.sessions.get(peer)
            if session is not None and session.user.name != user:
                close_session(state, session, now, "its connection has a new owner")
            is_calm = handle_client(state, self._status, peer, cast("Sequence[m.FromClient]", messages), now, user)
        if not is_calm:
            self._strike(side, peer, now, "too many messages a second")
        if state.touched:
            reindex(state)
        if state.dirty:
            pump(state, now)

    def bad_input(self, side: Side, peer: bytes, bad: Sequence[BadMessage] | ProtocolError, now: float) -> None:
        """Complain about what could not be read, and count one strike for the envelope."""
        if self.is_muted(side, peer, now):
            return
        if isinstance(bad, ProtocolError):
            if bad.peer_major is not None:
                if self._version_answers.take(now):
                    self.version_answers.append((side, peer))
            elif not bad.is_foreign:
                self._complain(side, peer, None, str(bad))
        else:
            for message in bad:
                self._complain(side, peer, message.rid, message.why)
        self._strike(side, peer, now, "too much that cannot be read")
        pump(self.state, now)

    def peer_gone(self, side: Side, peer: bytes, now: float) -> None:
        """Note that a connection is gone; its routing id will not return."""
        state = self.state
        if side is WORKERS:
            state.worker_strikes.forget(peer)
            node = state.nodes.get(peer)
            if node is not None:
                disconnect(state, node, now)
        else:
            state.client_strikes.forget(peer)
            session = state.sessions.get(peer)
            if session is not None:
                lose_connection(state, session, now)
        pump(self.state, now)

    def send_failed(self, side: Side, peer: bytes, messages: Sequence[m.Message], why: SendFailure, now: float) -> None:
        """Take back what could not be sent: a request that never left goes to another node at once."""
        state = self.state
        if why is SendFailure.UNPACKABLE:
            state.counters.internal_errors += 1
            abandon_unpackable(state, peer, messages, now, is_worker=side is WORKERS)
            pump(self.state, now)
            return
        if why is SendFailure.FULL:
            state.counters.egress_overflows += 1
        node = state.nodes.get(peer) if side is WORKERS else None
        if node is not None:
            for message in reversed(messages):
                request = state.leases.get(message.lease) if isinstance(message, m.Dispatch) else None
                if request is not None and request.node is node:
                    take_back(state, request)
            if why is SendFailure.FULL:
                leave(state, node, now)
        session = state.sessions.get(peer) if side is CLIENTS else None
        if session is not None and why is SendFailure.FULL:
            close_session(state, session, now, "its client reads nothing")
        if why is SendFailure.UNREACHABLE:
            self.peer_gone(side, peer, now)
        pump(self.state, now)

    def shut_out(self, side: Side, peer: bytes, why: str, now: float) -> None:
        """End what a peer has here, for its key is let in no more: streams with the reason, leases go elsewhere."""
        text = clip(why)
        session = self.state.sessions.get(peer) if side is CLIENTS else None
        if side is WORKERS:
            self._send_off(peer, 403, text, now)
        elif session is not None:
            for subscriber in list(session.subscribers.values()):
                dismiss(self.state, subscriber, ErrorKind.FORBIDDEN, text, now)
            self.state.tell_client(session, error(None, ErrorKind.FORBIDDEN, text))
            close_session(self.state, session, now, why)
        pump(self.state, now)

    def note_gate(self, kind: EventKind, subject: str, text: str, now: float) -> None:
        """Record what the gate did: whom it refused, and whose key it lets in no more."""
        self.state.events.record(kind, subject, text, now)

    def tick(self, now: float) -> None:
        """Act on everything that is due."""
        state = self.state
        for request in state.request_timers.due(now):
            if request.state is not RequestState.ENDED:
                expire(state, request, now)
        for node in state.node_timers.due(now):
            if node.state is not NodeState.REMOVED:
                check(state, node, now)
        for service in state.service_timers.due(now):
            self._check_service(service, now)
        for session in state.session_timers.due(now):
            check_session(state, session, now)
        acknowledge(state, now)
        state.result_cache.expire(now)
        state.client_strikes.expire(now)
        state.worker_strikes.expire(now)
        if state.drain_until is not None and now >= state.drain_until:
            state.drain_until = math.inf
            self._give_up(now)
        pump(self.state, now)

    def next_deadline(self) -> float:
        """Return when `tick` is due; infinity if nothing is."""
        state = self.state
        return min(
            state.request_timers.next(),
            state.node_timers.next(),
            state.service_timers.next(),
            state.session_timers.next(),
            next_acknowledgement(state),
            state.result_cache.next_expiry(),
            state.drain_until if state.drain_until is not None else math.inf,
        )

    # --- leaving ---------------------------------------------------------------------------------------------------

    def drain(self, now: float) -> None:
        """Take no new requests, send clients elsewhere, and finish what is here within the drain time."""
        state = self.state
        if state.is_draining:
            return
        state.drain_until = now + state.timing.drain_s
        for session in state.sessions.values():
            send_away(state, session, now)

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self.state.is_draining

    @property
    def is_drained(self) -> bool:
        """Whether every request has ended and every subscriber has been sent its end."""
        state = self.state
        is_idle = not any(user.requests for user in state.users.values())
        return is_idle and not any(session.lagging for session in state.sessions.values())

    def close(self) -> None:
        """Say goodbye to the workers; the last thing before the sockets close."""
        for node in self.state.nodes.values():
            self.state.tell_worker(node, m.Dismiss(503, "this broker is leaving"))

    def _give_up(self, now: float) -> None:
        text = "this broker has left before the request was done; go on with another one"
        for user in self.state.users.values():
            for request in list(user.requests.values()):
                fail(self.state, request, ErrorKind.DRAINING, text, now)

    # --- looking in ------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """What was counted; the shell adds its own."""
        return self.state.counters

    def is_muted(self, side: Side, peer: bytes, now: float) -> bool:
        """Say whether a peer is ignored for now, so that nothing of it need be decoded."""
        strikes = self.state.worker_strikes if side is WORKERS else self.state.client_strikes
        return strikes.is_muted(peer, now)

    def is_known(self, side: Side, peer: bytes) -> bool:
        """Say whether a peer has a session."""
        return peer in (self.state.nodes if side is WORKERS else self.state.sessions)

    def probe(self, side: Side, peer: bytes) -> None:
        """Send a peer something harmless: if it is gone, the send says so."""
        if not self.is_known(side, peer):
            return
        if side is CLIENTS:
            self.out.append((side, peer, m.Pong(0)))
        else:
            self.out.append((side, peer, self.state.nodes[peer].heartbeat()))

    def snapshot(self, now: float) -> Snapshot:
        """Describe everything, as QUERY does."""
        return snapshot(self.state, now)

    # --- parts -----------------------------------------------------------------------------------------------------

    def _check_service(self, service: Service[Request], now: float) -> None:
        if not service.healthy:
            until = wait_until(self.state, service)
            if until > now:
                self.state.service_timers.set(service, until)
                return
            end_grace(self.state, service, now)
        forget(self.state, service, now)

    def _complain(self, side: Side, peer: bytes, rid: bytes | None, why: str) -> None:
        if side is CLIENTS:
            session = self.state.sessions.get(peer)
            if session is not None and rid in session.subscribers:
                rid = None  # that request lives, and an ERROR under its id would be its end
            self.out.append((side, peer, error(rid, ErrorKind.BAD_REQUEST, why)))

    def _strike(self, side: Side, peer: bytes, now: float, why: str) -> None:
        state = self.state
        state.counters.strikes += 1
        strikes = state.worker_strikes if side is WORKERS else state.client_strikes
        if not strikes.add(peer, now):
            return
        state.counters.muted += 1
        state.events.record("muted", side.value, f"a peer: {why}; it is ignored for a minute", now)
        text = clip(f"{why}: this session is closed, and ignored for a minute")
        if side is WORKERS:
            self._send_off(peer, 400, text, now)
        else:
            self.out.append((side, peer, error(None, ErrorKind.FORBIDDEN, text)))
            session = state.sessions.get(peer)
            if session is not None:
                close_session(state, session, now, why)

    def _send_off(self, peer: bytes, code: int, text: str, now: float) -> None:
        self.out.append((WORKERS, peer, m.Dismiss(code, text)))
        node = self.state.nodes.get(peer)
        if node is not None:
            leave(self.state, node, now)
