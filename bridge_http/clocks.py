"""Clocks of a connection: how long its peer is waited for, and when it is tried whether it is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

_PROBES_S: Final = (0.25, 0.05, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0)
"""When to see whether a caller that sends no more still reads: its machine says no to the first byte, ours says so at
the second. Nine, since so many letters of an answer are known before it is; later than most answers take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
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


class Probed(Protocol):
    """An answer under way, which may say a byte ahead."""

    def probe(self) -> bytes:
        """Return a byte that changes no answer; none where there is none."""
        ...


class PeerProbe:
    """Sends a byte that changes nothing, and again later: to see whether a caller still reads."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._clock = Clock()

    def start(self, probed: Probed) -> None:
        """Begin anew."""
        self._wait(probed, 0)

    def stop(self) -> None:
        """Send nothing any more."""
        self._clock.stop()

    def _wait(self, probed: Probed, at: int) -> None:
        def now() -> None:
            self._write(probed.probe())
            self._wait(probed, at + 1)

        if at < len(_PROBES_S):
            self._clock.start(_PROBES_S[at], now)
