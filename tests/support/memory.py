"""How much memory a process takes, at the worst moment."""

from __future__ import annotations

import threading
from typing import Self

import psutil


class Memory:
    """Watches how much a process grows while in the `with` block."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self.most = self._now()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def growth(self) -> int:
        """Bytes, at the worst moment."""
        return self.most - self._before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(0.01):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        return int(self._process.memory_info().rss)
