"""What vLLM's processes print while they load: passed on, but for bars that are drawn again and again, and understood.

vLLM tells nobody how far it is. Its loaders draw bars, though, and a process that fails names its error before it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Generator
from typing import Final

from .base import Phase, Progress

_BAR: Final = re.compile(r"^(?:\([^)]*\) *)?(?P<what>[A-Za-z][^:|]*?):? +(?P<percent>\d{1,3})%")
_ERROR: Final = re.compile(r"(?:\w+\.)*(?:\w*(?:Error|Exception)|OutOfMemoryError): \S.*$")
_MOST_BYTES: Final = 64 << 10


def progress_of(line: str) -> tuple[Phase, float] | None:
    """Read a bar: weights are loaded, or what is done with them afterwards (graphs, kernels) makes it warm."""
    found = _BAR.match(line)
    if found is None:
        return None
    percent = min(100.0, float(found["percent"]))
    return ("loading" if "shard" in found["what"].lower() else "warming"), percent


def error_of(line: str) -> str:
    """Return the error that a line of a traceback ends with; empty if it has none."""
    found = _ERROR.search(line)
    return found[0].strip() if found is not None else ""


class LoadOutput:
    """Reads what is printed into a pipe, on a thread of its own, for as long as anybody has the other end."""

    def __init__(self, progress: Progress) -> None:
        self.error = ""
        """The first error that was printed: those after it follow from it."""
        self._progress = progress
        self._reader, self._writer = os.pipe()
        self._real = os.dup(2)
        self._unread = b""

    @contextlib.contextmanager
    def captured(self) -> Generator[None, None, None]:
        """Have this process, and those it starts meanwhile, print into the pipe."""
        threading.Thread(target=self._read, name="zmqrt-vllm-output", daemon=True).start()
        kept = os.dup(1)
        try:
            for descriptor in (1, 2):
                os.dup2(self._writer, descriptor)
            yield
        finally:
            os.dup2(kept, 1)
            os.dup2(self._real, 2)
            os.close(kept)
            os.close(self._writer)

    def _read(self) -> None:
        while data := os.read(self._reader, _MOST_BYTES):
            self.take(data)

    def take(self, data: bytes) -> None:
        """Take in what was printed: whole lines are passed on, states of bars are heard."""
        *whole, self._unread = re.split(rb"(?<=[\r\n])", self._unread + data)
        for line in whole:
            self._take_line(line)

    def _take_line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        heard = progress_of(text)
        if heard is not None:
            self._progress(*heard)
        elif text:
            self.error = self.error or error_of(text)
            with contextlib.suppress(OSError):
                os.write(self._real, line.rstrip(b"\r\n") + b"\n")
