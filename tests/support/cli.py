"""The `zmqrt` command as a real process: its output as it comes, and everything that it has started."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import psutil

from support.stack import eventually
from support.warm_start import Popen

_PATIENCE_S = 60.0


def zmqrt(
    *words: str, given: str | None = None, timeout_s: float = _PATIENCE_S, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with Popen(
        [sys.executable, "-m", "zmqrt.client.cli", *words],
        stdin=subprocess.DEVNULL if given is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=env,
    ) as command:
        try:
            out, err = command.communicate(given, timeout_s)
        except subprocess.TimeoutExpired:
            command.kill()
            raise
        return subprocess.CompletedProcess(words, command.returncode, out, err)


class Running:
    """A command that goes on; leaving the `with` block ends it with all that it has started."""

    def __init__(self, *words: str) -> None:
        self.lines: list[str] = []
        self.popen = Popen(
            [sys.executable, "-m", "zmqrt.client.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._family: dict[int, psutil.Process] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def until(self, is_it: Callable[[str], bool]) -> str:
        """Wait for a line and return it."""
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                line = self._said.get(timeout=max(0.0, give_up_at - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError("the line did not come:\n" + "\n".join(self.lines))
            if is_it(line):
                return line

    def family(self) -> list[psutil.Process]:
        """Return every process that it has started so far, itself first."""
        try:
            own = psutil.Process(self.popen.pid)
            for process in (own, *own.children(recursive=True)):
                self._family.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass
        return list(self._family.values())

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return self.popen.wait(_PATIENCE_S)

    def nothing_is_left(self) -> bool:
        """Say whether every process of the family has ended."""
        return not [process for process in self._family.values() if _lives(process)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.family()):
            if _lives(process):
                process.kill()
        self.popen.wait(10)
        eventually(self.nothing_is_left, what="the end of the family")

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip())
                self._said.put(line.rstrip())
        self._said.put(None)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
