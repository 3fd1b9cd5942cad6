"""The sockets of one client, moved by its core: what every shell does in a pass, whoever waits for the descriptors.

It decides nothing. A shell (`io_loop.py` in a thread, `event_loop_io.py` in an event loop) says when something lies
there to be read, and carries out afterwards what the core has decided: events to their readers, sockets opened and
closed, to each broker at most one envelope.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Final, Protocol

import zmq

from ..protocol import addresses, diagnose
from ..protocol import messages as m
from ..protocol.keys import PeerKeys
from .connection import BrokerConnection
from .core import ClientCore
from .failover import CloseSocket, OpenSocket, ProbeEndpoint, SocketAction
from .requests import Sink
from .response import Event
from .wakeup import Command
from .zmq_socket import ConnectionSocket

log: Final = logging.getLogger(__name__)


class Watcher(Protocol):
    """What the sockets ask of their shell."""

    def watch(self, session: ConnectionSocket) -> None:
        """Begin to wait for what comes on its DEALER and its monitor."""
        ...

    def unwatch(self, session: ConnectionSocket) -> None:
        """Wait no more; called before they are closed."""
        ...

    def watch_room(self, session: ConnectionSocket) -> None:
        """Wait for room to send as well, or no more: `is_blocked` has changed."""
        ...

    def post(self, command: Command) -> object:
        """Have a command called in a pass. Called by any thread."""
        ...


class BrokerSockets:
    """One client's core and its sockets, used by one thread."""

    def __init__(
        self,
        core: ClientCore,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: PeerKeys | None,
        shell: Watcher,
        *,
        insecure: bool,
    ) -> None:
        self._core = core
        self._context = context
        self._keys = keys
        self._shell = shell
        self._insecure = insecure
        self._connections: dict[BrokerConnection, ConnectionSocket] = {}
        self._names = addresses.Resolver()
        self._probing: set[str] = set()

    @property
    def all(self) -> list[ConnectionSocket]:
        """Those that are open."""
        return list(self._connections.values())

    def read(self, dealers: Iterable[ConnectionSocket], monitors: Iterable[ConnectionSocket], now: float) -> None:
        """Read what lies there. Messages before events: what a broker said before it left still counts."""
        for session in dealers:
            session.read(self._core, now)
        for session in monitors:
            session.read_events(self._core, now)

    def carry_out(self, now: float) -> None:
        """Do what the core has decided."""
        self._hand_out(now)
        for session in self.all:
            if session.connection.outbox or session.is_blocked:
                self._flush(session, now)
        if self._core.has_output:  # something could not be packed
            self._hand_out(now)

    def _hand_out(self, now: float) -> None:
        core = self._core
        while events := core.take_events():
            for sink, event in events:
                if not _put(sink, event) and type(event) is m.Partial:
                    core.overflowed(event.rid, now, sink)
        while actions := core.take_actions():
            for action in actions:
                self._act(action, now)

    def _act(self, action: SocketAction, now: float) -> None:
        match action:
            case OpenSocket(connection):
                log.debug("connecting to %s", connection.endpoint)
                session = ConnectionSocket(self._context, connection, self._keys, insecure=self._insecure)
                self._connections[connection] = session
                self._shell.watch(session)
                self._connect(session, now)
            case CloseSocket(connection, why):
                log.info("%s", why)
                session = self._connections.pop(connection)
                self._shell.unwatch(session)
                session.close(self._core, now)
            case ProbeEndpoint():
                self._diagnose(action)

    def _connect(self, session: ConnectionSocket, now: float) -> None:
        """Connect, after a look-up in a thread of its own where there is a name: that may take seconds."""
        if not addresses.is_name(session.connection.endpoint):
            session.connect(self._core, now)
            return

        def found(at: str) -> None:
            self._shell.post(lambda now: session.connect(self._core, now, at=at))

        self._names.look_up(session.connection.endpoint, found)

    def _flush(self, session: ConnectionSocket, now: float) -> None:
        was_blocked = session.is_blocked
        session.flush(self._core, now)
        if session.is_blocked != was_blocked:
            self._shell.watch_room(session)

    def _diagnose(self, order: ProbeEndpoint) -> None:
        """Look at the endpoint from a thread of its own: names and connections may take their time."""
        if order.endpoint not in self._probing:
            self._probing.add(order.endpoint)
            threading.Thread(target=self._probe, args=(order,), name="zmqrt-probe", daemon=True).start()

    def _probe(self, order: ProbeEndpoint) -> None:
        failure = diagnose.probe(order.endpoint, has_keys=self._keys is not None, broke_off=order.broke_off)

        def report(now: float) -> None:
            self._probing.discard(order.endpoint)
            self._core.explained(order.endpoint, failure, now)

        self._shell.post(report)


def _put(sink: Sink, event: Event) -> bool:
    """Hand an event to its reader. One that fails (a tracer's exporter, say) fails alone: the others are served on."""
    try:
        return sink.put(event)
    except Exception:
        log.exception("a reader could not take what came for it")
        return True
