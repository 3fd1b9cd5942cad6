"""uvicorn's HTTP/1.1 connection, with an end to its patience: for the head of a request, and for a reader that does not
read. Bodies have their own limit (`reading.py`), idle connections uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from .config import BridgeSettings

log = logging.getLogger(__name__)


class _Clock:
    """Calls once, so long after it was started last."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float, call: Callable[[], object]) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_later(seconds, call)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class PatientProtocol(HttpToolsProtocol):
    """One connection. Who is too slow is cut off; what ran for it sees a caller that has left."""

    head_timeout_s: ClassVar[float]
    write_timeout_s: ClassVar[float]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **named)
        self._head = _Clock()
        self._write = _Clock()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._head.start(self.head_timeout_s, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._head.stop()
        self._write.stop()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        self._head.start(self.head_timeout_s, self.transport.close)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Have it."""
        self._head.stop()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """Begin to wait for a reader that lets what was sent pile up."""
        super().pause_writing()
        self._write.start(self.write_timeout_s, self._cut_off)

    def resume_writing(self) -> None:
        """Go on: it has read."""
        self._write.stop()
        super().resume_writing()

    def _cut_off(self) -> None:
        log.info("a reader took nothing for %g s and is cut off", self.write_timeout_s)
        self.transport.abort()  # closing would wait until it has read the rest


def protocol_for(settings: BridgeSettings) -> type[asyncio.Protocol]:
    """Make the class of connections for these settings: uvicorn takes a class, not an object."""

    class Connection(PatientProtocol):
        head_timeout_s = settings.head_timeout_s
        write_timeout_s = settings.write_timeout_s

    return Connection
