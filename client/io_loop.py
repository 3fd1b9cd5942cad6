"""One pass of the I/O thread: read all sockets, ask the core, deliver events, send each broker at most one envelope.

It decides nothing. No event loop and no `add_reader`: a plain poller works on every platform and beside any loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, cast

import zmq

from ..protocol import addresses, diagnose
from ..protocol import messages as m
from ..protocol.keys import PeerKeys
from .connection import BrokerConnection
from .core import ClientCore
from .failover import CloseSocket, OpenSocket, ProbeEndpoint, SocketAction
from .requests import Sink
from .response import Event
from .timers import INFINITY
from .wakeup import Wakeup
from .zmq_socket import ConnectionSocket

_LONGEST_POLL_MS: Final = 60_000
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
log = logging.getLogger(__name__)


class IoLoop:
    """One client's sockets and core, owned by one thread."""

    def __init__(
        self,
        core: ClientCore,
        context: zmq.Context[zmq.Socket[bytes]],
        keys: PeerKeys | None,
        wake: zmq.Socket[bytes],
        wakeup: Wakeup,
        *,
        insecure: bool,
    ) -> None:
        self._core = core
        self._context = context
        self._keys = keys
        self._insecure = insecure
        self._wake = wake
        self._wakeup = wakeup
        self._poller = zmq.Poller()
        self._poller.register(wake, _POLLIN)
        self._connections: dict[BrokerConnection, ConnectionSocket] = {}
        self._of_dealer: dict[zmq.Socket[bytes], ConnectionSocket] = {}
        self._of_monitor: dict[zmq.Socket[bytes], ConnectionSocket] = {}
        self._names = addresses.Resolver()
        self._probing: set[str] = set()
        self._is_stopping = False

    def stop(self) -> None:
        """End after this pass; posted as a command."""
        self._is_stopping = True

    def run(self) -> None:
        """Work until stopped."""
        self._core.start(time.monotonic())
        while not self._is_stopping:
            due = self._core.next_deadline()
            ready = self._poll(due)
            now = time.monotonic()
            self._read(ready, now)
            self._wakeup.take(now)
            if now >= due:
                self._core.tick(now)
            self._carry_out(now)

    def finish(self) -> None:
        """Say goodbye, tell everybody who waits, and close all sockets. The context ends when the goodbyes are out.

        Each step is taken even if another fails: after a fault in the core nobody may be left waiting.
        """
        now = time.monotonic()
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._wakeup.close(now),
            self._core.close,
            lambda: self._carry_out(now),
            lambda: self._wake.close(0),
            self._context.term,
        )
        for step in steps:
            try:
                step()
            except Exception:
                log.exception("the client could not end in good order")

    def _poll(self, due: float) -> list[tuple[zmq.Socket[bytes], int]]:
        timeout_ms = _LONGEST_POLL_MS
        if due != INFINITY:
            timeout_ms = min(timeout_ms, max(0, int((due - time.monotonic()) * 1000) + 1))
        if not self._wakeup.may_sleep():
            timeout_ms = 0
        ready = self._poller.poll(timeout_ms)
        self._wakeup.wake()
        return cast("list[tuple[zmq.Socket[bytes], int]]", ready)  # no bare file descriptor is ever registered

    def _read(self, ready: list[tuple[zmq.Socket[bytes], int]], now: float) -> None:
        """Messages before events: what a broker said before it left still counts."""
        monitors: list[ConnectionSocket] = []
        for socket, mask in ready:
            if socket is self._wake:
                self._wake.recv(zmq.NOBLOCK)
            elif (session := self._of_dealer.get(socket)) is not None:
                if mask & _POLLIN:
                    session.read(self._core, now)
            elif (session := self._of_monitor.get(socket)) is not None:
                monitors.append(session)
        for session in monitors:
            session.read_events(self._core, now)

    def _carry_out(self, now: float) -> None:
        self._hand_out(now)
        for session in list(self._connections.values()):
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
                self._of_dealer[session.dealer] = self._of_monitor[session.monitor] = session
                self._poller.register(session.dealer, _POLLIN)
                self._poller.register(session.monitor, _POLLIN)
                self._connect(session, now)
            case CloseSocket(connection, why):
                log.info("%s", why)
                session = self._connections.pop(connection)
                for socket, table in ((session.dealer, self._of_dealer), (session.monitor, self._of_monitor)):
                    self._poller.unregister(socket)
                    del table[socket]
                session.close(self._core, now)
            case ProbeEndpoint():
                self._diagnose(action)

    def _connect(self, session: ConnectionSocket, now: float) -> None:
        """Connect, after a look-up in a thread of its own where there is a name: that may take seconds."""
        if not addresses.is_name(session.connection.endpoint):
            session.connect(self._core, now)
            return

        def found(at: str) -> None:
            self._wakeup.post(lambda now: session.connect(self._core, now, at=at))

        self._names.look_up(session.connection.endpoint, found)

    def _flush(self, session: ConnectionSocket, now: float) -> None:
        was_blocked = session.is_blocked
        session.flush(self._core, now)
        if session.is_blocked != was_blocked:
            self._poller.modify(session.dealer, _POLLIN | _POLLOUT if session.is_blocked else _POLLIN)

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

        self._wakeup.post(report)


def _put(sink: Sink, event: Event) -> bool:
    """Hand an event to its reader. One that fails (a tracer's exporter, say) fails alone: the others are served on."""
    try:
        return sink.put(event)
    except Exception:
        log.exception("a reader could not take what came for it")
        return True
