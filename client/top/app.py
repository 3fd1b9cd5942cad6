"""The loop of `zmqrt top`: look once a second, draw, and take keys in between. Decides nothing about the picture."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from ...protocol.errors import ZmqrtError
from ...protocol.request_trace import RequestTrace
from .fleet import Fleet, Sight, merge
from .history import History
from .keyboard import Keyboard
from .recording import Recorder
from .sources import EVERY_S, Source
from .state import Drain, Explain, Page, Quit, State, Wish, press
from .text import Clean
from .view import Frame, screen


class Top:
    """One run of the monitor, until somebody leaves."""

    def __init__(self, source: Source, console: Console, keyboard: Keyboard, recorder: Recorder | None = None) -> None:
        self._source = source
        self._console = console
        self._keyboard = keyboard
        self._recorder = recorder
        self._state = State()
        self._history = History()
        self._fleet: Fleet = merge([])
        self._paused: tuple[Fleet, History] | None = None
        self._at_s = 0.0
        self._look_at = 0.0
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="zmqrt-top")
        self._drain: Future[str] | None = None
        self._story: tuple[Explain, Future[list[RequestTrace]]] | None = None
        self._opened: Explain | None = None

    def run(self) -> None:
        """Show the fleet until a key or a signal says to leave."""
        try:
            with _signals_interrupt(), contextlib.suppress(KeyboardInterrupt):
                while self._show():
                    self._suspend()
        finally:
            self._helper.shutdown(wait=False, cancel_futures=True)

    def _show(self) -> bool:
        """Show it until somebody leaves (False), or wants the shell for a while."""
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
        live.update(Clean(screen(fleet, history, self._state, self._frame())), refresh=True)
        is_waiting = self._drain is not None or self._story is not None
        return self._keyboard.keys(min(self._look_at - time.monotonic(), 0.1 if is_waiting else EVERY_S))

    def _look(self) -> None:
        sights, self._at_s = self._source.look(is_paused=self._state.is_paused)
        self._record(sights)
        self._history.fold(sights, self._at_s)
        self._fleet = merge(sights, self._history.outages.tell())
        if self._state.page is Page.REQUEST and self._opened is not None and self._story is None:
            self._wish(self._opened)  # it goes on, and so does its story

    def _record(self, sights: Sequence[Sight]) -> None:
        if self._recorder is None:
            return
        try:
            self._recorder.write(sights, self._at_s)
        except OSError as error:
            self._recorder = None
            self._state = replace(self._state, message=f"the recording ends here: {error.strerror or error}")

    def _frame(self) -> Frame:
        width, height = self._console.size
        clock = time.strftime("%H:%M:%S", time.localtime(self._at_s)) if self._at_s else ""
        return Frame(width=width, height=height, clock=clock, mode=self._source.mode)

    def _press_all(self, keys: Sequence[str]) -> bool:
        """Do what keys say; False: leave. What comes in one piece with a question cannot be its answer."""
        for key in keys:
            was_asked = self._state.draining
            if not self._press(key):
                return False
            if self._state.draining and not was_asked:
                break
        return True

    def _press(self, key: str) -> bool:
        was_paused = self._state.is_paused
        self._state, wish = press(self._state, key, self._paused[0] if self._paused else self._fleet)
        if self._state.is_paused != was_paused and self._source.is_live:
            self._paused = (self._fleet, self._history.copy()) if self._state.is_paused else None
        if not self._state.is_typing and self._source.press(key):
            self._history = History()
            self._look_at = 0.0
        if isinstance(wish, Quit):
            return False
        if wish is not None:
            self._wish(wish)
        return True

    def _wish(self, wish: Wish) -> None:
        match wish:
            case Drain(node_id):
                self._drain = self._helper.submit(self._source.drain, node_id)
            case Explain(endpoint, rid):
                self._opened = wish
                self._story = wish, self._helper.submit(self._source.explain, endpoint, rid)
            case Quit():
                raise AssertionError(wish)  # the caller leaves

    def _take_answers(self) -> None:
        """Show what was asked for, as soon as it is there: the picture never waits for it."""
        if self._drain is not None and self._drain.done():
            self._state = replace(self._state, message=self._drain.result())
            self._drain = None
        if self._story is not None and self._story[1].done():
            asked, told = self._story
            self._story = None
            if asked == self._opened and self._state.page is Page.REQUEST:
                self._take_story(told)

    def _take_story(self, told: Future[list[RequestTrace]]) -> None:
        try:
            stories = tuple(told.result())
        except ZmqrtError as error:
            self._tell_about_story(str(error))
            return
        if stories:
            self._state = replace(self._state, stories=stories)
        else:
            self._tell_about_story("the broker does not know this request any more")

    def _tell_about_story(self, words: str) -> None:
        """Say what is in the way; what was told before stays on the screen."""
        page = Page.REQUEST if self._state.stories else Page.FLEET
        self._state = replace(self._state, message=words, page=page)


@contextlib.contextmanager
def _signals_interrupt() -> Generator[None]:
    """Leave on SIGTERM and SIGHUP as on Ctrl-C: the terminal is given back as it was."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    found = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    before = {number: signal.signal(number, interrupt) for number in found if number is not None}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
