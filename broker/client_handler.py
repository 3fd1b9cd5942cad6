"""What clients send: each message to whoever decides about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from ..protocol import messages as m
from ..protocol.errors import ErrorKind
from .admin import Admin
from .admission import Admission
from .completion import Endings
from .session_lifecycle import Desk
from .sessions import Session
from .state import BrokerState, Side, error
from .status import StatusView


class Intake:
    """The broker's face to clients."""

    __slots__ = ("_admin", "_admission", "_desk", "_endings", "_state", "_status_view")

    def __init__(
        self,
        state: BrokerState,
        *,
        desk: Desk,
        admission: Admission,
        endings: Endings,
        status_view: StatusView,
        admin: Admin,
    ) -> None:
        self._state = state
        self._desk = desk
        self._admission = admission
        self._endings = endings
        self._status_view = status_view
        self._admin = admin

    def handle(self, peer: bytes, messages: Sequence[m.FromClient], now: float, user: str) -> bool:
        """Act on one envelope. False: it floods, which is a strike."""
        session = self._state.sessions.get(peer)
        if session is not None:
            session.heard_at = now
        is_calm, is_told = True, False
        for message in messages:
            if type(message) is m.Hello:
                session = self._desk.hello(peer, user, message, now)
                is_calm = is_calm and (session is None or session.control.take(now))
            elif session is None:
                if type(message) is m.Request or not is_told:  # one complaint is enough, but each request must hear
                    self._no_session(peer, message)
                is_told = True
            elif type(message) is m.Request:
                self._admission.request(session, message, now)
            else:
                is_calm = self._control(session, message, now) and is_calm
                if not session.is_open:
                    session = None
        return is_calm

    def _control(self, session: Session, message: m.FromClient, now: float) -> bool:
        match message:
            case m.Window():
                self._desk.window(session, message, now)
            case m.Cancel():
                self._cancel(session, message, now)
            case m.Bye():
                self._desk.bye(session, now)
            case m.Query():
                return self._query(session, message, now)
            case m.Ping() | m.Admin():
                return self._ask(session, message, now)
            case m.Hello() | m.Request():
                raise AssertionError(message)  # taken care of by the caller
            case _:
                assert_never(message)
        return True

    def _ask(self, session: Session, message: m.Ping | m.Admin, now: float) -> bool:
        """Answer something small; so many a second, because an answer may cost more than the question."""
        if not session.control.take(now):
            return False
        match message:
            case m.Ping():
                self._desk.ping(session, message)
            case m.Admin():
                self._state.tell_client(session, self._admin.answer(session.user.name, message, now))
        return True

    def _query(self, session: Session, query: m.Query, now: float) -> bool:
        """Answer, or say when to ask again; only who does not keep to that floods."""
        if session.queries.take(now):
            self._state.tell_client(session, self._status_view.answer(query, session.user.name, now))
            return True
        self._state.tell_client(session, self._status_view.put_off(query))
        return session.put_offs.take(now)

    def _cancel(self, session: Session, cancel: m.Cancel, now: float) -> None:
        """Give one subscriber up. Unknown or ended: nothing to do, its terminal message is on its way."""
        subscriber = session.subscribers.get(cancel.rid)
        if subscriber is not None:
            self._endings.dismiss_reader(
                subscriber, ErrorKind.CANCELLED, cancel.reason or "cancelled by its client", now
            )

    def _no_session(self, peer: bytes, message: m.FromClient) -> None:
        rid = message.rid if type(message) is m.Request else None
        text = "there is no session on this connection; send HELLO first"
        self._state.out.append((Side.CLIENTS, peer, error(rid, ErrorKind.NO_SESSION, text)))
