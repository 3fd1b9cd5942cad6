"""Opens sessions with brokers, notices that one is lost, and turns to the next. No socket, no clock.

There is one session for new work (`current`), at most one being opened, and those that are leaving but still busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..protocol import messages as m
from ..protocol.errors import ErrorKind, ZmqrtError, request_error
from ..protocol.failure import Failure
from ..protocol.limits import MAX_NAME_CHARS, WINDOW_BYTES
from .connection import BrokerConnection, ConnectionState
from .endpoints import STEADY_S, Endpoints
from .request_table import RequestTable
from .timers import INFINITY

if TYPE_CHECKING:
    import random

    from .config import ClientConfig

_PAUSE_S: Final = 0.1
"""Longest pause between two attempts while somebody has just begun to wait."""
_MAX_GREETINGS: Final = 3
"""A broker that forgets the session more often than this is not well."""


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """Make a socket for the connection and connect it."""

    connection: BrokerConnection


@dataclass(frozen=True, slots=True)
class CloseSocket:
    """Send what is left in the connection's outbox and close its socket."""

    connection: BrokerConnection
    why: str


@dataclass(frozen=True, slots=True)
class ProbeEndpoint:
    """Find out what answers at the endpoint, and report by `explained`."""

    endpoint: str
    broke_off: bool


SocketAction = OpenSocket | CloseSocket | ProbeEndpoint


class Connections:
    """All connections of a client. What a lost one leaves unfinished goes back into the queue of the request table."""

    def __init__(self, config: ClientConfig, client_uuid: bytes, table: RequestTable, rng: random.Random) -> None:
        self.actions: list[SocketAction] = []
        self.by_id: dict[int, BrokerConnection] = {}
        self.current: BrokerConnection | None = None
        self.down_since = 0.0
        self._config = config
        self._uuid = client_uuid
        self._table = table
        self._rng = rng
        self._endpoints = Endpoints(config.endpoints, rng)
        self._opening: BrokerConnection | None = None
        self._open_at = INFINITY
        self._last_id = 0

    # --- opening

    def start(self, now: float) -> None:
        """Begin to connect."""
        self.down_since = now
        self._open_at = now

    def retry_soon(self, now: float) -> None:
        """Do not sit out a long pause between attempts: somebody waits now."""
        if _PAUSE_S < self._open_at - now < INFINITY:
            self._open_at = now + self._rng.uniform(0, _PAUSE_S)

    def greet(self, connection: BrokerConnection, now: float) -> None:
        """Say HELLO once the ZMTP handshake is done."""
        if connection.state is ConnectionState.OPENING:
            self._hello(connection, now)

    def _hello(self, connection: BrokerConnection, now: float) -> None:
        connection.greet(
            m.Hello(self._uuid, m.VERSION, m.VERSION, self._config.name[:MAX_NAME_CHARS], WINDOW_BYTES), now
        )

    def welcome(self, connection: BrokerConnection, welcome: m.Welcome, now: float) -> bool:
        """Use a session that is open; False if it was not waited for."""
        if connection.state is not ConnectionState.HELLO_SENT:
            return False
        connection.welcome(welcome, self._config.max_outstanding, now)
        self._opening = None
        self._open_at = INFINITY
        self._endpoints.welcomed(connection.endpoint)
        self._endpoints.learn(welcome.params.brokers)
        self.current = connection
        return True

    def _open(self, now: float) -> None:
        self._open_at = INFINITY
        self._last_id += 1
        connection = self._opening = BrokerConnection(self._last_id, self._endpoints.choose(now), now)
        self.by_id[connection.id] = connection
        self.actions.append(OpenSocket(connection))

    # --- losing

    def lose(self, connection: BrokerConnection, failure: Failure | None, now: float) -> None:
        """Give a connection up that is gone or never came to be; None = the cause is not known yet."""
        if connection.state is ConnectionState.DEAD:
            return
        self._shut(connection, failure.text if failure is not None else f"{connection.endpoint}: no connection")
        self._table.requeue(connection)
        if connection is self._opening:
            self._opening = None
            self._open_at = now + self._endpoints.failed(connection.endpoint, failure)
            if failure is None:
                self.actions.append(ProbeEndpoint(connection.endpoint, connection.broke_off))
        elif connection is self.current:
            self._go_down(connection, now)
            if failure is not None:
                self._endpoints.explained(connection.endpoint, failure)

    def greet_again(self, connection: BrokerConnection, now: float) -> None:
        """Open a session anew in its old connection: the broker has forgotten it (it took us for gone)."""
        if connection.state is not ConnectionState.UP:
            return  # greeted already
        if connection.greetings >= _MAX_GREETINGS:
            self.lose(
                connection, Failure(f"{connection.endpoint}: the broker forgets this session again and again"), now
            )
            return
        self._table.requeue(connection, is_forgotten=True)
        if connection is self.current:
            self.current = None
            self.down_since = now
        self._opening = connection
        self._hello(connection, now)

    def leave(self, connection: BrokerConnection, until: float, now: float) -> None:
        """Send new work to the next broker; what runs here may finish."""
        if connection.state is not ConnectionState.UP:
            return
        connection.state = ConnectionState.LEAVING
        connection.leave_by = until
        self._endpoints.leaving(connection.endpoint, until)
        if connection is self.current:
            self._go_down(connection, now)

    def close(self) -> None:
        """Say goodbye to all."""
        for connection in list(self.by_id.values()):
            if connection.is_open:
                connection.outbox.append(m.Bye())
            self._shut(connection, f"{connection.endpoint}: closed here")
        self._open_at = INFINITY
        self.current = None

    def shut_if_done(self, connection: BrokerConnection) -> None:
        """Say goodbye to a broker that is leaving, once it owes us nothing."""
        if connection.state is ConnectionState.LEAVING and not connection.outstanding and not connection.asked:
            connection.outbox.append(m.Bye())
            self._shut(connection, f"{connection.endpoint}: the broker is leaving, and nothing is left to do there")

    def _go_down(self, connection: BrokerConnection, now: float) -> None:
        self.current = None
        lasted_s = now - connection.up_since
        if lasted_s >= STEADY_S:
            self.down_since = now  # else it was none: callers wait no longer because of it
        self._open_at = now + self._endpoints.lost(lasted_s)

    def _shut(self, connection: BrokerConnection, why: str) -> None:
        connection.state = ConnectionState.DEAD
        self.by_id.pop(connection.id, None)
        self.actions.append(CloseSocket(connection, why))

    # --- time

    def next_deadline(self) -> float:
        """When `tick` has something to do."""
        due = self._open_at
        for connection in self.by_id.values():
            due = min(due, connection.next_deadline())
        return due

    def tick(self, now: float) -> None:
        """Look after every session, and open one if it is time."""
        for connection in list(self.by_id.values()):
            self._check(connection, now)
        if now >= self._open_at:
            self._open(now)

    def _check(self, connection: BrokerConnection, now: float) -> None:
        is_vague = connection.state is ConnectionState.OPENING  # a look at who answers there will say more
        failure = connection.check(now)
        if failure is not None:
            self.lose(connection, None if is_vague else failure, now)
        elif now >= connection.leave_by:
            self.lose(connection, Failure(f"{connection.endpoint}: the broker has left"), now)
        else:
            self.shut_if_done(connection)

    # --- what is in the way

    def explained(self, endpoint: str, failure: Failure) -> None:
        """Learn the cause of an earlier failure."""
        self._endpoints.explained(endpoint, failure)

    @property
    def patience_s(self) -> float:
        """How long to let callers wait for a session that does not come."""
        if self._endpoints.is_hopeless:
            return 0.0
        if self._endpoints.is_explained:
            return self._config.connect_timeout_s / 2  # whoever starts client and broker together still succeeds
        return self._config.connect_timeout_s

    def unreachable(self, waited_s: float) -> ZmqrtError:
        """Put into one error why there is no session."""
        if self._is_leaving() and not self._endpoints.is_explained:
            return _leaving()
        return self._endpoints.error(waited_s)

    def unanswered(self) -> ZmqrtError:
        """Say why a question was not answered in its time."""
        if self.current is None and self._is_leaving():
            return _leaving()
        if self.current is None and self._endpoints.is_explained:
            return self._endpoints.error(0.0)
        return request_error(ErrorKind.DEADLINE, "the broker did not answer the question in time")

    def _is_leaving(self) -> bool:
        return any(connection.state is ConnectionState.LEAVING for connection in self.by_id.values())

    @property
    def has_others(self) -> bool:
        """Whether there is more than one broker to choose from."""
        return self._endpoints.count > 1


def _leaving() -> ZmqrtError:
    return request_error(ErrorKind.DRAINING, "the broker is shutting down, and there is no other", retry_after_s=1.0)
