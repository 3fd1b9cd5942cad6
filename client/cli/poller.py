"""The newest snapshot of a broker, asked for in a thread of its own, so that a view never waits for the network."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ...protocol.errors import ZmqrtError
from ...protocol.snapshot import Snapshot
from ..sync import Client

_EVERY_S: Final = 0.5


class Poller:
    """Ask again and again while in the `with` block; `snapshot` is None while nobody answers."""

    def __init__(self, endpoint: str, keys: Path | None, *, insecure: bool = False, every_s: float = _EVERY_S) -> None:
        self.snapshot: Snapshot | None = None
        self._every_s = every_s
        self._client = Client(endpoint, keys=keys, insecure=insecure, timeout_s=2.0, name="zmqrt up")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._client.close()
        self._thread.join(self._every_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.snapshot = self._client.status()
            except ZmqrtError:
                self.snapshot = None
            self._stop.wait(self._every_s)
