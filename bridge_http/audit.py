"""The audit log: one line of JSON for each request for work, whoever asked, without a word of prompt or answer.

Lines are written by a thread of their own, flushed together, to a file that is opened again when it was moved away
(logrotate) or on SIGHUP. A disk that is full loses lines, which is counted and said; or, where the settings want it
so, nothing is answered meanwhile.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from ..protocol.errors import ConfigurationError
from ..protocol.file_edits import FULL

MOST_WAITING: Final = 10_000
"""Lines, some 3 MB: seconds of a busy bridge."""
_MOST_AT_ONCE: Final = 1000
_FAREWELL_S: Final = 5.0
log = logging.getLogger(__name__)


class AuditLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. `key`: the beginning of its key's hash; `peer`: the address that its connection came from;
    `left_out`: so many of callers that were not let in have had no line since the last such one.
    """

    at: str = ""
    request_id: str
    tenant: str = ""
    name: str = ""
    key: str = ""
    peer: str = ""
    method: str
    path: str
    status: int
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    left_out: int = 0


class AuditLog:
    """The file, and the thread that writes it."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open the file, so that a wrong one is known at once. Raises ConfigurationError."""
        self._path = path
        self._clock = clock
        self._lines: queue.SimpleQueue[AuditLine | None] = queue.SimpleQueue()
        self._is_old = False
        self._is_torn = False
        self._thread: threading.Thread | None = None
        self.problem = ""
        """Why lines are lost now; "" = none is."""
        self.lost = 0
        """Lines that were not written."""
        self._file: BinaryIO | None = None
        try:
            self._file = self._open()
        except OSError as error:
            if error.errno in FULL:  # which ends no service that starts anew: each line tries again
                self._lose(0, f"{path}: {error.strerror}")
                return
            raise ConfigurationError(f"{path} cannot be written as audit log: {error.strerror}") from None

    def write(self, line: AuditLine) -> None:
        """Have a line written at some time soon."""
        if self._lines.qsize() >= MOST_WAITING:
            self._lose(1, f"{MOST_WAITING} lines wait to be written")
            return
        at = dt.datetime.fromtimestamp(self._clock(), dt.UTC).isoformat(timespec="milliseconds")
        self._lines.put(msgspec.structs.replace(line, at=at))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def reopen(self) -> None:
        """Write what comes next into a file of the same name that may be another one."""
        self._is_old = True

    def close(self) -> None:
        """Write what there is to write."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(_FAREWELL_S)
            self._thread = None
        self._drop_file()

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        is_over = False
        while not is_over:
            lines = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while len(lines) < _MOST_AT_ONCE:
                    lines.append(self._lines.get_nowait())
            is_over = None in lines
            told = [line for line in lines if line is not None]
            if not told:
                continue
            try:
                self._write(b"".join(msgspec.json.encode(line) + b"\n" for line in told))
            except OSError as error:
                self._drop_file()
                self._lose(len(told), f"{self._path}: {error.strerror}")
            else:
                self._recover()

    def _write(self, data: bytes) -> None:
        if self._file is None or self._is_old or self._was_moved(self._file):
            self._is_old = False
            self._drop_file()
            self._file = self._open()
        left = memoryview(b"\n" + data if self._is_torn else data)
        while left:
            left = left[self._file.write(left) :]
            self._is_torn = bool(left)  # should the rest fail

    def _drop_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def _was_moved(self, file: BinaryIO) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return True

    def _open(self) -> BinaryIO:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(handle, "ab", buffering=0)  # noqa: PTH123 - a handle has no path

    def _lose(self, lines: int, problem: str) -> None:
        if not self.problem:
            log.error("the audit log loses lines: %s", problem)
        self.problem = problem
        self.lost += lines

    def _recover(self) -> None:
        if self.problem:
            log.warning("the audit log is written again; %d lines were lost", self.lost)
            self.problem = ""
