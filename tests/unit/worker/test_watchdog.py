"""Who ends an engine process that stands still while it warms up, and nobody else."""

from __future__ import annotations

import faulthandler
import threading

import pytest

from zmqrt.worker.engines.base import Phase
from zmqrt.worker.engines.generate.watchdog import Watchdog
from zmqrt.worker.engines.ipc import EXIT_HUNG


class End:
    """Notes how the process would have ended."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.came = threading.Event()

    def __call__(self, code: int) -> None:
        """Take it down."""
        self.codes.append(code)
        self.came.set()


def test_no_step_of_warming_up_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it stood is written down first."""
    dumps: list[bool] = []
    monkeypatch.setattr(faulthandler, "dump_traceback", lambda: dumps.append(True))
    end, told = End(), list[tuple[Phase, float]]()
    with Watchdog(0.02, end=end) as dog:
        dog.watching(lambda phase, percent: told.append((phase, percent)))("warming", 3.0)
        assert end.came.wait(30)

    assert end.codes == [EXIT_HUNG]
    assert told == [("warming", 3.0)]
    assert dumps == [True]
    assert "the device hangs" in caplog.text


def test_a_slow_disk_is_no_hang() -> None:
    """While weights are read it waits for as long as that takes, and when they are read anew as well."""
    end = End()
    with Watchdog(0.5, end=end) as dog:
        progress = dog.watching(lambda _phase, _percent: None)
        progress("warming", 0.0)
        progress("loading", 10.0)
        assert not end.came.wait(0.8)

    assert end.codes == []
