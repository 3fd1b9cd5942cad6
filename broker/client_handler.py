"""What clients send: each message to whoever decides about it. ADMIN is decided here: who may drain which node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, assert_never

from ..protocol import admin
from ..protocol import messages as m
from ..protocol.admin import AdminOutcome
from ..protocol.errors import ErrorKind
from .admission import take_request
from .completion import dismiss
from .delivery import flush
from .liveness import ask_to_drain
from .nodes import NodeState
from .requests import Session
from .session_lifecycle import close_session, open_session
from .state import BrokerState, Side, error
from .status import StatusView

_LISTED: Final = 20
"""Nodes named to somebody who named none of them: a screen, not a fleet."""


def handle_client(
    state: BrokerState, status: StatusView, peer: bytes, messages: Sequence[m.FromClient], now: float, user: str
) -> bool:
    """Act on one envelope. False: it floods, which is a strike."""
    session = state.sessions.get(peer)
    if session is not None:
        session.heard_at = now
    is_calm, has_complained = True, False
    for message in messages:
        if type(message) is m.Hello:
            session = open_session(state, peer, user, message, now)
            is_calm = is_calm and (session is None or session.control.take(now))
        elif session is None:
            if type(message) is m.Request or not has_complained:  # one complaint is enough, but each request must hear
                _refuse_without_session(state, peer, message)
            has_complained = True
        elif type(message) is m.Request:
            take_request(state, session, message, now)
        else:
            is_calm = _control(state, status, session, message, now) and is_calm
            if not session.is_open:
                session = None
    return is_calm


def _control(state: BrokerState, status: StatusView, session: Session, message: m.FromClient, now: float) -> bool:
    match message:
        case m.Window():
            if session.consume(message.bytes_consumed) and session.lagging:
                flush(state, session, now)
        case m.Cancel():  # unknown or ended: nothing to do, its terminal message is on its way
            subscriber = session.subscribers.get(message.rid)
            if subscriber is not None:
                text = message.reason or "cancelled by its client"
                dismiss(state, subscriber, ErrorKind.CANCELLED, text, now)
        case m.Bye():
            close_session(state, session, now)
        case m.Query():
            return _query(state, status, session, message, now)
        case m.Ping() | m.Admin():
            return _answer(state, session, message, now)
        case m.Hello() | m.Request():
            raise AssertionError(message)  # taken care of by the caller
        case _:
            assert_never(message)
    return True


def _query(state: BrokerState, status: StatusView, session: Session, query: m.Query, now: float) -> bool:
    """Answer, or say when to ask again; only who does not keep to that floods."""
    if session.queries.take(now):
        state.tell_client(session, status.answer(state, query, session.user.name, now))
        return True
    state.tell_client(session, status.defer(query))
    return session.deferrals.take(now)


def _answer(state: BrokerState, session: Session, message: m.Ping | m.Admin, now: float) -> bool:
    """Answer something small; so many a second, because an answer may cost more than the question."""
    if not session.control.take(now):
        return False
    if type(message) is m.Admin:
        state.tell_client(session, _administer(state, session.user.name, message, now))
    elif type(message) is m.Ping:
        state.tell_client(session, m.Pong(message.nonce))
    return True


def _refuse_without_session(state: BrokerState, peer: bytes, message: m.FromClient) -> None:
    rid = message.rid if type(message) is m.Request else None
    text = "there is no session on this connection; send HELLO first"
    state.out.append((Side.CLIENTS, peer, error(rid, ErrorKind.NO_SESSION, text)))


# --- ADMIN -----------------------------------------------------------------------------------------------------------


def _administer(state: BrokerState, user: str, message: m.Admin, now: float) -> m.Status:
    """Do what is asked, if an admin asks, and say what was done."""
    if not state.is_admin(user):
        outcome = _refusal(ErrorKind.FORBIDDEN, f"{user!r} is not an admin; see authorized_clients")
    elif message.verb == "drain":
        outcome = _drain(state, message.args.get("node"), now)
    else:
        outcome = _refusal(ErrorKind.BAD_REQUEST, f"unknown verb {message.verb!r}; known: drain")
    return m.Status(message.qid, admin.SCHEMA, admin.SCHEMA_VERSION, admin.encode(outcome))


def _drain(state: BrokerState, node_id: object, now: float) -> AdminOutcome:
    nodes = [node for node in state.nodes_by_uuid.values() if node.node_id == node_id]
    if not nodes:
        return _refusal(ErrorKind.NOT_FOUND, f"no node is called {node_id!r}; {_list_nodes(state)}")
    asked, deadline_s = sum(ask_to_drain(state, node, now) for node in nodes), state.timing.drain_s
    if asked:
        text = f"{asked} node(s) called {node_id!r} are draining"
        return AdminOutcome(is_done=True, text=text, deadline_s=deadline_s)
    if any(node.state is NodeState.DRAINING for node in nodes):
        return AdminOutcome(is_done=True, text=f"node {node_id!r} is draining already", deadline_s=deadline_s)
    states = ", ".join(sorted({node.state.value for node in nodes}))
    text = f"node {node_id!r} cannot be asked, it is {states}; its work goes elsewhere, and it is forgotten soon"
    return _refusal(ErrorKind.NO_WORKER, text)


def _list_nodes(state: BrokerState) -> str:
    names = sorted({node.node_id for node in state.nodes_by_uuid.values()})
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"there are: {', '.join(names[:_LISTED])}{more}" if names else "no node has joined"


def _refusal(kind: ErrorKind, text: str) -> AdminOutcome:
    return AdminOutcome(is_done=False, text=text, reason=kind.value)
