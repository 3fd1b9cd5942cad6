"""Sessions of clients: opened by HELLO, kept by any sign of life, closed by BYE, by silence or by bad input.

A session whose connection is lost stays a few seconds with its requests, so that its client can come back for them.
"""

from __future__ import annotations

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from .bounds import CONTROL_BURST, CONTROL_RATE, IDLE_PROBE_S, QUERY_RATE
from .completion import abandon, dismiss
from .delivery import drop
from .rate_limits import full_bucket
from .requests import Session, User
from .state import BrokerState, Side, error, milliseconds


def open_session(state: BrokerState, peer: bytes, user: str, hello: m.Hello, now: float) -> Session | None:
    """Open a session, or say why not. A second HELLO is answered like the first."""
    session = state.sessions.get(peer)
    if not hello.min_version <= m.VERSION <= hello.max_version:
        text = f"this broker speaks ZRT/{m.VERSION}, not {hello.min_version} to {hello.max_version}"
        _turn_away(state, peer, ErrorKind.VERSION, text)
        return None
    if session is None:
        if len(state.sessions) >= state.bounds.sessions:
            _turn_away(state, peer, ErrorKind.RATE_LIMITED, f"{state.bounds.sessions} sessions are open already")
            return None
        session = _open(state, peer, user, hello, now)
    state.tell_client(session, m.Welcome(state.broker_id, state.broker_epoch, state.params))
    if state.is_draining:
        send_away(state, session, now)
    return session


def _open(state: BrokerState, peer: bytes, user: str, hello: m.Hello, now: float) -> Session:
    window_bytes = min(hello.window_bytes or state.bounds.window_bytes, state.bounds.window_bytes)
    session = Session(
        peer,
        state.users.setdefault(user, User(user)),
        hello.client_uuid,
        hello.name,
        window_bytes,
        now,
        full_bucket(CONTROL_RATE, CONTROL_BURST, now),
        full_bucket(QUERY_RATE, 2 * QUERY_RATE, now),
        full_bucket(QUERY_RATE, 2 * QUERY_RATE, now),
        is_bridge=state.is_bridge(user),
        send_until=window_bytes,
    )
    state.sessions[peer] = session
    state.counters.sessions_opened += 1
    state.session_timers.set(session, now + state.timing.client_gone_s)
    return session


def _turn_away(state: BrokerState, peer: bytes, kind: ErrorKind, text: str) -> None:
    state.out.append((Side.CLIENTS, peer, error(None, kind, text, retry_after_s=1.0)))


def send_away(state: BrokerState, session: Session, now: float) -> None:
    """Tell a client that this broker is leaving, and how long what runs here has."""
    left_s = (state.drain_until or now) - now
    left_ms = milliseconds(min(left_s, state.timing.drain_s))
    state.tell_client(session, m.Goaway("this broker is leaving", left_ms, list(state.bounds.brokers)))


def close_session(state: BrokerState, session: Session, now: float, why: str = "its client left") -> None:
    """Close a session; what it waits for is cancelled."""
    session.shut()
    if state.sessions.get(session.peer) is session:
        del state.sessions[session.peer]
    state.session_timers.clear(session)
    for subscriber in list(session.subscribers.values()):
        abandon(state, subscriber, why, now)


def lose_connection(state: BrokerState, session: Session, now: float) -> None:
    """Note that a connection is gone: its client may come back for its requests within the grace."""
    state.counters.sessions_lost += 1
    del state.sessions[session.peer]
    session.shut()
    for subscriber in list(session.subscribers.values()):
        if subscriber.request is None:
            drop(state, subscriber)  # what has ended is replayed from the cache
    state.session_timers.set(session, now + state.timing.reattach_grace_s)


def check_session(state: BrokerState, session: Session, now: float) -> None:
    """Look at a session whose timer is due: grace, window, silence."""
    timing = state.timing
    if not session.is_open:
        close_session(state, session, now, "its client did not come back")
        return
    if session.shut_at is not None and now - session.shut_at >= timing.eviction_s:
        _give_up_lagging(state, session, now)
    silence_s = now - session.heard_at
    if silence_s >= timing.client_gone_s and session.subscribers:
        lose_connection(state, session, now)
        return
    if silence_s >= IDLE_PROBE_S:
        state.tell_client(session, m.Pong(0))  # unasked for: libzmq says if nobody is there
    when = session.heard_at + timing.client_gone_s
    when = when if when > now else now + timing.client_gone_s
    if session.shut_at is not None:
        when = min(when, session.shut_at + timing.eviction_s)
    state.session_timers.set(session, when)


def _give_up_lagging(state: BrokerState, session: Session, now: float) -> None:
    text = f"nothing was read for {state.timing.eviction_s:.1f} s, with {session.window_bytes} bytes unread"
    for subscriber in list(session.lagging):
        dismiss(state, subscriber, ErrorKind.SLOW_READER, text, now)
