"""One pass of the I/O thread: read what is there, tell the core what time it is, carry out what it decides.

No event loop and no `add_reader`: a plain poller works on every platform and beside any loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, cast

import zmq

from ..protocol.keys import PeerKeys
from .broker_sockets import BrokerSockets
from .core import ClientCore
from .timers import INFINITY
from .wakeup import Command, Wakeup
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
        self._wake = wake
        self._wakeup = wakeup
        self._sockets = BrokerSockets(core, context, keys, self, insecure=insecure)
        self._poller = zmq.Poller()
        self._poller.register(wake, _POLLIN)
        self._of_dealer: dict[zmq.Socket[bytes], ConnectionSocket] = {}
        self._of_monitor: dict[zmq.Socket[bytes], ConnectionSocket] = {}
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
            self._sockets.carry_out(now)

    def finish(self) -> None:
        """Say goodbye, tell everybody who waits, and close all sockets. The context ends when the goodbyes are out.

        Each step is taken even if another fails: after a fault in the core nobody may be left waiting.
        """
        now = time.monotonic()
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._wakeup.close(now),
            self._core.close,
            lambda: self._sockets.carry_out(now),
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
        dealers: list[ConnectionSocket] = []
        monitors: list[ConnectionSocket] = []
        for socket, mask in ready:
            if socket is self._wake:
                self._wake.recv(zmq.NOBLOCK)
            elif (session := self._of_dealer.get(socket)) is not None:
                if mask & _POLLIN:
                    dealers.append(session)
            elif (session := self._of_monitor.get(socket)) is not None:
                monitors.append(session)
        self._sockets.read(dealers, monitors, now)

    # Called by the sockets.

    def watch(self, session: ConnectionSocket) -> None:
        """Poll for what comes on its DEALER and its monitor."""
        self._of_dealer[session.dealer] = self._of_monitor[session.monitor] = session
        self._poller.register(session.dealer, _POLLIN)
        self._poller.register(session.monitor, _POLLIN)

    def unwatch(self, session: ConnectionSocket) -> None:
        """Poll them no more."""
        for socket, table in ((session.dealer, self._of_dealer), (session.monitor, self._of_monitor)):
            self._poller.unregister(socket)
            del table[socket]

    def watch_room(self, session: ConnectionSocket) -> None:
        """Poll for room to send, while envelopes wait for it."""
        self._poller.modify(session.dealer, _POLLIN | _POLLOUT if session.is_blocked else _POLLIN)

    def post(self, command: Command) -> object:
        """Have a command called in the next pass. Called by any thread."""
        return self._wakeup.post(command)
