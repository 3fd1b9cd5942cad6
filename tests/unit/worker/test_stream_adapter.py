"""A StreamEngine in its thread: what it leaves when it is closed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from zmqrt.worker.engines.adapters import Outbox
from zmqrt.worker.engines.base import Capacity
from zmqrt.worker.engines.stream_adapter import StreamAdapter


class Watchful:
    """A StreamEngine that watches itself until it is closed."""

    has_stopped_watching = False

    def capacity(self) -> Capacity:
        """One at a time."""
        return Capacity(slots=1, context=8)

    async def generate(self, task: dict[str, Any]) -> AsyncIterator[str]:
        """Answer with one word."""
        yield str(task["input"])

    async def watch(self) -> None:
        """Wait for an end that does not come, and take a moment to leave."""
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.has_stopped_watching = True

    async def close(self) -> None:
        """Be closed after the watch has ended: it may use what this frees."""
        assert self.has_stopped_watching


def test_what_watches_an_engine_has_ended_before_the_engine_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """A watch that is only cancelled is destroyed while it waits, and asyncio logs an error of that at each end."""
    engine = Watchful()
    adapter = StreamAdapter(engine, Outbox(), lambda: None)
    adapter.close()
    del adapter
    gc.collect()

    assert engine.has_stopped_watching
    assert caplog.records == []
