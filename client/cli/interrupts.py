"""Ctrl-C and its kin as a number to look at: the first asks to finish, the second to stop at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Generator
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Count signals that ask to leave, while in the `with` block; nothing is interrupted by them."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_listening()

    @contextlib.contextmanager
    def raised(self) -> Generator[None]:
        """Let Ctrl-C interrupt what is done meanwhile, as it does in any program."""
        self._stop_listening()
        try:
            yield
        finally:
            self._listen()

    def _listen(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # a platform has some of them
            number = getattr(signal, name, None)
            if number is not None:
                self._before[number] = signal.signal(number, self._heard)

    def _stop_listening(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


@contextlib.contextmanager
def signals_interrupt() -> Generator[None]:
    """Leave on SIGTERM and SIGHUP as on Ctrl-C, so that what is cleared away then is; `nohup` still counts."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    found = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    heard = [number for number in found if number is not None and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
