"""The loop of `zmqrt top`: look once a second, draw, and take keys in between. Decides nothing about the picture."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from ...protocol.errors import ZmqrtError
from ...protocol.story import Story
from .fleet import Fleet, merge
from .history import History
from .keyboard import Keyboard
from .recording import Recorder
from .sources import EVERY_S, Source
from .state import Drain, Explain, Page, Quit, State, Wish, press
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
        self._at_s = 0.0
        self._look_at = 0.0
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="zmqrt-top")
        self._drain: Future[str] | None = None
        self._story: Future[list[Story]] | None = None
        self._asked: Explain | None = None

    def run(self) -> None:
        """Show the fleet until a key or a signal says to leave."""
        live = Live(console=self._console, screen=True, auto_refresh=False)
        try:
            with _signals_interrupt(), self._keyboard, live, contextlib.suppress(KeyboardInterrupt):
                while self._step(live):
                    pass
        finally:
            self._helper.shutdown(wait=False, cancel_futures=True)

    def _step(self, live: Live) -> bool:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + EVERY_S
            self._look()
        self._take_answers()
        live.update(screen(self._fleet, self._history, self._state, self._frame()), refresh=True)
        is_waiting = self._drain is not None or self._story is not None
        wait_s = min(self._look_at - time.monotonic(), 0.1 if is_waiting else EVERY_S)
        return all(self._press(key) for key in self._keyboard.keys(wait_s))

    def _look(self) -> None:
        if self._state.is_paused:
            return
        sights, self._at_s = self._source.look()
        if self._recorder is not None:
            self._recorder.write(sights, self._at_s)
        self._fleet = merge(sights)
        self._history.fold(sights, self._at_s)
        if self._state.page is Page.REQUEST and self._asked is not None and self._story is None:
            self._wish(self._asked)  # it goes on, and so does its story

    def _frame(self) -> Frame:
        width, height = self._console.size
        clock = time.strftime("%H:%M:%S", time.localtime(self._at_s)) if self._at_s else ""
        return Frame(width=width, height=height, clock=clock, mode=self._source.mode)

    def _press(self, key: str) -> bool:
        """Do what a key says; False: leave."""
        was_paused = self._state.is_paused
        self._state, wish = press(self._state, key, self._fleet)
        if not self._state.is_typing and self._source.press(key, is_paused=was_paused):
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
                self._asked = wish
                self._story = self._helper.submit(self._source.explain, endpoint, rid)
            case Quit():
                raise AssertionError(wish)  # the caller leaves

    def _take_answers(self) -> None:
        """Show what was asked for, as soon as it is there: the picture never waits for it."""
        if self._drain is not None and self._drain.done():
            self._state = replace(self._state, message=_outcome(self._drain))
            self._drain = None
        if self._story is not None and self._story.done():
            self._take_story(self._story)
            self._story = None

    def _take_story(self, told: Future[list[Story]]) -> None:
        error = told.exception()
        if error is not None:
            if not isinstance(error, ZmqrtError):
                raise error
            self._state = replace(self._state, message=str(error), page=Page.FLEET)
        elif told.result():
            self._state = replace(self._state, stories=tuple(told.result()))
        elif not self._state.stories:
            self._state = replace(self._state, message="the broker does not know it any more", page=Page.FLEET)


def _outcome(done: Future[str]) -> str:
    error = done.exception()
    return done.result() if error is None else str(error)


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
