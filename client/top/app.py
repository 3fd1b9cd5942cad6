"""The loop of `zmqrt top`: look once a second, draw, and take keys in between. Decides nothing about the picture."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from ...protocol.errors import ZmqrtError
from ...protocol.request_trace import RequestTrace
from ..cli.interrupts import signals_interrupt
from ..cli.text import Clean
from .brokers import EVERY_S, WatchedBrokers
from .fleet import MergedFleet, merge
from .history import FleetHistory
from .keyboard import Keyboard
from .state import DrainNode, ExplainRequest, Page, Quit, TopCommand, ViewState, press
from .view import Viewport, screen


class Top:
    """One run of the monitor, until somebody leaves."""

    def __init__(self, brokers: WatchedBrokers, console: Console, keyboard: Keyboard) -> None:
        self._brokers = brokers
        self._console = console
        self._keyboard = keyboard
        self._state = ViewState()
        self._history = FleetHistory()
        self._fleet = merge([])
        self._paused: tuple[MergedFleet, FleetHistory] | None = None
        """What is shown while the picture is paused; the history goes on meanwhile."""
        self._look_at = 0.0
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="zmqrt-top")
        self._drain: Future[str] | None = None
        self._trace: tuple[ExplainRequest, Future[list[RequestTrace]]] | None = None
        self._opened: ExplainRequest | None = None

    def run(self) -> None:
        """Show the fleet until a key or a signal says to leave."""
        try:
            with signals_interrupt(), contextlib.suppress(KeyboardInterrupt):
                while self._show():
                    self._suspend()
        finally:
            self._helper.shutdown(wait=False, cancel_futures=True)

    def _show(self) -> bool:
        """Show the fleet until somebody leaves (False), or wants the shell for a while (True)."""
        live = Live(console=self._console, screen=True, auto_refresh=False)
        with self._keyboard, live:
            while True:
                keys = self._step(live)
                if "ctrl-z" in keys:
                    return True
                if not self._press_all(keys):
                    return False

    @staticmethod
    def _suspend() -> None:
        """Stop as any program does on Ctrl-Z, with the terminal as it was."""
        if sys.platform != "win32":
            os.kill(os.getpid(), signal.SIGTSTP)

    def _step(self, live: Live) -> list[str]:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + EVERY_S
            self._look()
        self._take_answers()
        fleet, history = self._paused or (self._fleet, self._history)
        width, height = self._console.size
        viewport = Viewport(width=width, height=height, clock=time.strftime("%H:%M:%S"))
        live.update(Clean(screen(fleet, history, self._state, viewport)), refresh=True)
        is_waiting = self._drain is not None or self._trace is not None
        return self._keyboard.keys(min(self._look_at - time.monotonic(), 0.1 if is_waiting else EVERY_S))

    def _look(self) -> None:
        views = self._brokers.look()
        self._history.fold(views, time.time())
        self._fleet = merge(views, self._history.outages.events())
        if self._state.page is Page.REQUEST and self._opened is not None and self._trace is None:
            self._start(self._opened)  # the request goes on, and so does its story

    def _press_all(self, keys: Sequence[str]) -> bool:
        """Obey keys; False: leave. Keys that came together with a question cannot be its answer."""
        for key in keys:
            was_asked = self._state.draining
            if not self._press(key):
                return False
            if self._state.draining and not was_asked:
                break
        return True

    def _press(self, key: str) -> bool:
        was_paused = self._state.is_paused
        self._state, command = press(self._state, key, self._paused[0] if self._paused else self._fleet)
        if self._state.is_paused != was_paused:
            self._paused = (self._fleet, self._history.copy()) if self._state.is_paused else None
        if isinstance(command, Quit):
            return False
        if command is not None:
            self._start(command)
        return True

    def _start(self, command: TopCommand) -> None:
        """Ask brokers in another thread: the picture never waits for them."""
        match command:
            case DrainNode(node_id):
                self._drain = self._helper.submit(self._brokers.drain, node_id)
            case ExplainRequest(endpoint, rid):
                self._opened = command
                self._trace = command, self._helper.submit(self._brokers.explain, endpoint, rid)
            case Quit():
                raise AssertionError(command)  # the caller leaves

    def _take_answers(self) -> None:
        """Show what was asked for, as soon as it is there."""
        if self._drain is not None and self._drain.done():
            self._state = replace(self._state, message=self._drain.result())
            self._drain = None
        if self._trace is not None and self._trace[1].done():
            command, answer = self._trace
            self._trace = None
            if command == self._opened and self._state.page is Page.REQUEST:
                self._take_trace(answer)

    def _take_trace(self, answer: Future[list[RequestTrace]]) -> None:
        problem = "the broker does not know this request any more"
        try:
            traces = tuple(answer.result())
        except ZmqrtError as error:
            traces, problem = (), str(error)
        if traces:
            self._state = replace(self._state, traces=traces)
            return
        # The newest story stays on the screen; without one there is nothing to show here.
        page = Page.REQUEST if self._state.traces else Page.FLEET
        self._state = replace(self._state, message=problem, page=page)
