"""Clocks of a connection: how long its peer is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a connection is waited for."""

    head_s: float
    body_s: float
    write_s: float
    keep_alive_s: float


class Clock:
    """Calls once, so long after it was started last."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[[], object]) -> None:
        """Begin anew."""
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(seconds, call)

    def stop(self) -> None:
        """Call nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
