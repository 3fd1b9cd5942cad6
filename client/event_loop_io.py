"""Runs a client's core within the event loop of whoever uses it: no thread, and nothing is handed from one to another.

ZeroMQ's descriptor is edge-triggered: it turns readable when something changes, and sending may swallow that. So after
each pass the sockets themselves are asked whether something lies there still; then there is a further pass.

All of a turn of the loop goes out together: who asks for something leaves a command, and one pass carries out them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import zmq

from ..protocol import transport
from ..protocol.errors import ErrorKind, request_error
from .broker_sockets import BrokerSockets
from .config import ClientConfig
from .io_base import CLOSED, BaseIo
from .timers import INFINITY
from .wakeup import Command
from .zmq_socket import ConnectionSocket

_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
_TICK_S: Final = 0.001
"""Clocks of loops count milliseconds: a timer may come this much early, and would be set again and again."""
log = logging.getLogger(__name__)


class EventLoopIo(BaseIo):
    """Runs a ClientCore in one event loop that has `add_reader`. All but `post` is called in that loop."""

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._sockets: BrokerSockets | None = None
        self._commands: deque[Command] = deque()
        self._dealers: set[ConnectionSocket] = set()
        """Those that are to be read in the next pass; the same for monitors."""
        self._monitors: set[ConnectionSocket] = set()
        self._next_pass: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = INFINITY

    def check_alive(self) -> None:
        """Raise if nobody is there any more to answer. Raises CancelledError."""
        if self._over is not None:
            raise self._unusable()

    def stop(self) -> None:
        """Cancel everything, say goodbye and end; calling it twice does no harm. Waits up to 250 ms for the goodbye."""
        self.close()
        self.end()

    def close(self) -> None:
        """Cancel everything, and leave the goodbye to the sockets; calling it twice does no harm."""
        was_over, self._over = self._over is not None, self._over or CLOSED
        if not was_over:
            self._finish()

    def end(self) -> None:
        """Wait, up to 250 ms, until the goodbye is out. May be called by another thread, after `close`."""
        if self._context is not None:
            self._context.term()

    def _post(self, command: Command) -> None:
        if self._over is not None:
            raise self._unusable()
        if self._sockets is None:
            self._start()
        elif not self._is_at_home():
            text = "this client works in the event loop of its first use; make one in each loop and in each process"
            raise request_error(ErrorKind.CANCELLED, text)
        self._commands.append(command)
        self._pass_soon()

    def _post_if_used(self, command: Command) -> None:
        if self._sockets is None or self._over is not None:
            return
        if self._is_at_home():
            self._commands.append(command)
            self._pass_soon()
        elif self._pid == os.getpid():  # a stream that is forgotten may be collected in any thread
            self.post(command)

    def _is_at_home(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop and self._pid == os.getpid()
        except RuntimeError:
            return False

    def _start(self) -> None:
        keys = self._load_keys()
        self._loop, self._pid = asyncio.get_running_loop(), os.getpid()
        self._context = transport.make_context()
        self._sockets = BrokerSockets(self._core, self._context, keys, self, insecure=self._config.insecure)
        self._core.start(time.monotonic())

    def _pass_soon(self) -> None:
        if self._next_pass is None:
            assert self._loop is not None
            self._next_pass = self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        """Read what lies there, carry out commands, do what is due, send."""
        sockets = self._sockets
        if sockets is None or self._over is not None:
            return
        if self._next_pass is not None:
            self._next_pass.cancel()
            self._next_pass = None
        try:
            due = self._core.next_deadline()
            now = time.monotonic()
            if now >= due:  # what lies there unread is no silence
                self._dealers.update(sockets.all)
                self._monitors.update(sockets.all)
            if self._dealers or self._monitors:
                dealers, self._dealers = self._dealers, set()
                monitors, self._monitors = self._monitors, set()
                sockets.read(dealers, monitors, now)
            self._carry_out_commands(now)
            if now >= due:
                self._core.tick(now)
            sockets.carry_out(now)
            self._look_again(sockets)
            self._set_timer(now)
        except Exception as error:
            log.exception("the client failed; every request under way is cancelled")
            self._over = f"it failed: {error!r}"
            self._finish()

    def _carry_out_commands(self, now: float) -> None:
        for _ in range(len(self._commands)):
            self._commands.popleft()(now)

    def _look_again(self, sockets: BrokerSockets) -> None:
        """Have a further pass if there is something that no descriptor will tell."""
        for session in sockets.all:
            events = int(session.dealer.getsockopt(zmq.EVENTS))
            if events & _POLLIN:
                self._dealers.add(session)
                self._pass_soon()
            elif session.is_blocked and events & _POLLOUT:
                self._pass_soon()
        if self._commands:  # of readers that left while they were told something
            self._pass_soon()

    def _set_timer(self, now: float) -> None:
        due = self._core.next_deadline()
        if due < self._timer_at:
            assert self._loop is not None
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._loop.call_later(max(0.0, due - now) + _TICK_S, self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_at = None, INFINITY
        self._pass()

    def _finish(self) -> None:
        """Tell everybody who waits, and close all sockets. Each step is taken even if another fails."""
        sockets = self._sockets
        if sockets is None:
            return
        now = time.monotonic()
        for handle in (self._next_pass, self._timer):
            if handle is not None:
                handle.cancel()
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._carry_out_commands(now),
            self._core.close,
            lambda: sockets.carry_out(now),
            *(partial(self._drop, session) for session in sockets.all),
        )
        for step in steps:
            try:
                step()
            except Exception:
                log.exception("the client could not end in good order")

    def _drop(self, session: ConnectionSocket) -> None:
        """Close what a core with a fault has left open: the end of the context would be waited for for ever."""
        if not session.dealer.closed:
            self.unwatch(session)
            session.drop()

    # Called by the sockets.

    def watch(self, session: ConnectionSocket) -> None:
        """Have a pass whenever something comes on its DEALER or its monitor."""
        assert self._loop is not None

        def on_dealer() -> None:
            self._dealers.add(session)
            self._pass()

        def on_monitor() -> None:
            self._monitors.add(session)
            self._dealers.add(session)  # what a broker said before it left still counts
            self._pass()

        self._loop.add_reader(_fd(session.dealer), on_dealer)
        self._loop.add_reader(_fd(session.monitor), on_monitor)

    def unwatch(self, session: ConnectionSocket) -> None:
        """Have none any more."""
        assert self._loop is not None
        self._dealers.discard(session)
        self._monitors.discard(session)
        if not self._loop.is_closed():
            self._loop.remove_reader(_fd(session.dealer))
            self._loop.remove_reader(_fd(session.monitor))

    def watch_room(self, session: ConnectionSocket) -> None:
        """Nothing is to be done: the descriptor tells of room as well, and each pass tries to send what waits."""

    def post(self, command: Command) -> None:
        """Have a command called in a pass. Called by any thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._post_if_used, command)


def _fd(socket: zmq.Socket[bytes]) -> int:
    return int(socket.getsockopt(zmq.FD))
