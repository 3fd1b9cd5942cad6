"""Ends an engine process that stands still while it gets ready.

Once it serves the agent does that, by its silence. While it loads nobody can tell silence from a slow disk; but between
the steps of warming up there are seconds at most, so whoever waits longer waits for a device that hangs.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Callable
from typing import Final, Self

from ..base import Phase, Progress
from ..ipc import EXIT_HUNG

LIMIT_S: Final = 300.0
"""To compile all kernels of Triton is one step, and takes a minute or two where cores are few and slow."""
log = logging.getLogger(__name__)


class Watchdog:
    """Watches the phase "warming", of which it hears by `watching`."""

    def __init__(self, limit_s: float = LIMIT_S, *, end: Callable[[int], object] = os._exit) -> None:
        self._limit_s = limit_s
        self._end = end
        self._is_warming = False
        self._is_over = False
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="zmqrt-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._is_over = True
            self._moved.notify()
        self._thread.join()

    def watching(self, progress: Progress) -> Progress:
        """Return a progress that it hears of."""

        def report(phase: Phase, percent: float) -> None:
            with self._moved:
                self._is_warming = phase == "warming"
                self._moved.notify()
            progress(phase, percent)

        return report

    def _watch(self) -> None:
        with self._moved:
            while not self._is_over:
                if not self._moved.wait(self._limit_s if self._is_warming else None):
                    break
            else:
                return
        # Other threads go on without us: most that wait for a device have let go of the interpreter.
        log.critical("no step of warming up for %.0f s: the device hangs; this process ends here:", self._limit_s)
        faulthandler.dump_traceback()
        self._end(EXIT_HUNG)
