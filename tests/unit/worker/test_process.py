"""An engine process: what it loads, and how long its loop waits when there is nothing to do."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from typing import Any, cast

import pytest

from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.adapters import EngineAdapter, Outbox
from zmqrt.worker.engines.base import EngineStats
from zmqrt.worker.engines.channel import Channel, WakePipe, make_channel
from zmqrt.worker.engines.process import EngineLoop


class Still:
    """An adapter that has nothing to do and does not move, as one with a batch that takes too long."""

    is_busy = is_alive = False

    def stats(self) -> EngineStats:
        """None kept."""
        return EngineStats()

    def close(self) -> None:
        """Nothing to free."""


@pytest.mark.parametrize("is_alive", [True, False])
def test_an_idle_loop_waits_whether_it_shows_itself_or_not(monkeypatch: pytest.MonkeyPatch, *, is_alive: bool) -> None:
    """No sign of life goes out for one that does not move, and that is no reason to look at it all the time."""
    now, waits = 100.0, list[int]()
    channel, its_end = make_channel()
    agent = Channel(its_end)

    class Poll:
        def register(self, *_: object) -> None:
            """Watch it."""

        def poll(self, milliseconds: int) -> None:
            """Let that time pass; the agent ends it after some rounds."""
            nonlocal now
            waits.append(milliseconds)
            now += milliseconds / 1000
            if len(waits) == 6:
                agent.send(ipc.encode([ipc.Stop()]))

    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    still: Any = Still()
    still.is_alive = is_alive
    loop = EngineLoop(channel, {"": cast("EngineAdapter", still)}, Outbox(), wakeups=WakePipe())
    loop.run()

    assert len(waits) == 6
    assert min(waits) >= 199
    assert len(agent.receive()) == (6 if is_alive else 0)
    loop.close()
    agent.close()
    channel.close()


def test_an_engine_process_loads_only_what_its_engine_needs() -> None:
    """A node starts one for each device, and again for each that breaks: what is loaded for nothing delays them all."""
    code = "import sys, zmqrt.worker.engines.process, zmqrt.worker.engines.mock; print(sorted(NAMES & {*sys.modules}))"
    names = "NAMES = {'asyncio', 'importlib.metadata', 'numpy', 'torch', 'zmq'}"
    result = subprocess.run([sys.executable, "-c", f"{names}; {code}"], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"
