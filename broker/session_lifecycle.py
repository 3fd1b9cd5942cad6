"""Sessions of clients: opened by HELLO, kept by any sign of life, closed by BYE, by silence or by bad input.

A session whose connection is lost stays a few seconds with its requests, so that its client can come back for them.
"""

from __future__ import annotations

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from .bounds import CONTROL_BURST, CONTROL_RATE, IDLE_PROBE_S, QUERY_RATE
from .completion import Endings
from .delivery import Delivery
from .sessions import Session, User, bucket
from .state import BrokerState, Side, error, milliseconds


class Desk:
    """Opens, watches and closes sessions."""

    __slots__ = ("_delivery", "_endings", "_state")

    def __init__(self, state: BrokerState, delivery: Delivery, endings: Endings) -> None:
        self._state = state
        self._delivery = delivery
        self._endings = endings

    def hello(self, peer: bytes, user: str, hello: m.Hello, now: float) -> Session | None:
        """Open a session, or say why not. A second HELLO is answered like the first."""
        state = self._state
        session = state.sessions.get(peer)
        if not hello.min_version <= m.VERSION <= hello.max_version:
            text = f"this broker speaks ZRT/{m.VERSION}, not {hello.min_version} to {hello.max_version}"
            self._turn_away(peer, ErrorKind.VERSION, text)
            return None
        if session is None:
            if len(state.sessions) >= state.bounds.sessions:
                self._turn_away(peer, ErrorKind.RATE_LIMITED, f"{state.bounds.sessions} sessions are open already")
                return None
            session = self._open(peer, user, hello, now)
        self._welcome(session)
        if state.is_draining:
            self.send_away(session, now)
        return session

    def _open(self, peer: bytes, user: str, hello: m.Hello, now: float) -> Session:
        state = self._state
        window_bytes = min(hello.window_bytes or state.bounds.window_bytes, state.bounds.window_bytes)
        session = Session(
            peer,
            state.users.setdefault(user, User(user)),
            hello.client_uuid,
            hello.name,
            state.ids().to_bytes(8, "big"),
            window_bytes,
            now,
            bucket(CONTROL_RATE, CONTROL_BURST, now),
            bucket(QUERY_RATE, 2 * QUERY_RATE, now),
            bucket(QUERY_RATE, 2 * QUERY_RATE, now),
            send_until=window_bytes,
        )
        state.sessions[peer] = session
        state.counters.sessions_opened += 1
        state.session_timers.set(session, now + state.timing.client_gone_s)
        return session

    def _welcome(self, session: Session) -> None:
        state = self._state
        state.tell_client(session, m.Welcome(state.broker_id, state.broker_epoch, session.session_id, state.params))

    def _turn_away(self, peer: bytes, kind: ErrorKind, text: str) -> None:
        self._state.out.append((Side.CLIENTS, peer, error(None, kind, text, retry_after_s=1.0)))

    def send_away(self, session: Session, now: float) -> None:
        """Tell a client that this broker is leaving, and how long what runs here has."""
        state = self._state
        left_s = (state.drain_until or now) - now
        left_ms = milliseconds(min(left_s, state.timing.drain_s))
        state.tell_client(session, m.Goaway("this broker is leaving", left_ms, list(state.bounds.brokers)))

    def ping(self, session: Session, ping: m.Ping) -> None:
        """Answer a PING."""
        self._state.tell_client(session, m.Pong(ping.nonce))

    def window(self, session: Session, window: m.Window, now: float) -> None:
        """Learn how much was consumed, and send what waited for it."""
        if session.consume(window.bytes_consumed) and session.lagging:
            self._delivery.flush(session, now)

    def bye(self, session: Session, now: float, why: str = "its client left") -> None:
        """Close a session; what it waits for is cancelled."""
        state = self._state
        session.shut()
        if state.sessions.get(session.peer) is session:
            del state.sessions[session.peer]
        state.session_timers.clear(session)
        for subscriber in list(session.subscribers.values()):
            self._endings.abandon(subscriber, why, now)

    def lost(self, session: Session, now: float) -> None:
        """Note that a connection is gone: its client may come back for its requests within the grace."""
        state = self._state
        state.counters.sessions_lost += 1
        del state.sessions[session.peer]
        session.shut()
        session.lost_at = now
        for subscriber in [one for one in session.subscribers.values() if one.request is None]:
            self._delivery.drop(subscriber)  # what has ended is replayed from its outcome
        state.session_timers.set(session, now + state.timing.reattach_grace_s)

    def check(self, session: Session, now: float) -> None:
        """Look at a session whose timer is due: grace, window, silence."""
        state, timing = self._state, self._state.timing
        if not session.is_open:
            self.bye(session, now, "its client did not come back")
            return
        if session.shut_at is not None and now - session.shut_at >= timing.eviction_s:
            self._give_up_lagging(session, now)
        silence_s = now - session.heard_at
        if silence_s >= timing.client_gone_s and session.subscribers:
            self.lost(session, now)
            return
        if silence_s >= IDLE_PROBE_S:
            state.tell_client(session, m.Pong(0))  # unasked for: libzmq says if nobody is there
        when = session.heard_at + timing.client_gone_s
        when = when if when > now else now + timing.client_gone_s
        if session.shut_at is not None:
            when = min(when, session.shut_at + timing.eviction_s)
        state.session_timers.set(session, when)

    def _give_up_lagging(self, session: Session, now: float) -> None:
        text = f"nothing was read for {self._state.timing.eviction_s:.1f} s, with {session.window_bytes} bytes unread"
        for subscriber in list(session.lagging):
            self._state.counters.slow_readers += 1
            self._endings.dismiss_reader(subscriber, ErrorKind.SLOW_READER, text, now)
