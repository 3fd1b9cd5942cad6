"""The client for asyncio that has no thread: for a program whose one event loop does all, such as the HTTP bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .aio import AsyncClient
from .config import ClientConfig
from .event_loop_io import EventLoopIo
from .wakeup import ReaderWakeup


class SameLoop:
    """Wakes readers in the loop that this is called in."""

    def ring(self, wake: Callable[[], None]) -> None:
        """Call it: its reader runs in the next turn of the loop."""
        wake()

    def make_future(self) -> asyncio.Future[None]:
        """Make what a reader awaits."""
        return asyncio.get_running_loop().create_future()


class LoopClient(AsyncClient):
    """An AsyncClient that works within the event loop of its first use, and is used nowhere else.

    What holds up the loop holds up its connections to the brokers, too. The loop needs `add_reader`: uvloop has it, and
    asyncio's own loop everywhere but on Windows.
    """

    _io: EventLoopIo

    async def close(self) -> None:
        """Cancel what is under way and end. A closed client cannot be used again."""
        self._io.close()
        await asyncio.shield(asyncio.to_thread(self._io.end))

    def _make_io(self, config: ClientConfig) -> EventLoopIo:
        return EventLoopIo(config)

    def _wakeup(self) -> ReaderWakeup:
        return SameLoop()
