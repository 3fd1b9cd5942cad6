"""Keeps roles running in processes of their own: starts, reads, restarts with backoff, drains, leaves none behind.

It knows how processes live and die, and the one line in which a role says that it is ready; what the roles do is not
known here.
"""

from __future__ import annotations

import contextlib
import enum
import json
import queue
import random
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, Any, Final, Self

from ...protocol.children import PARENT_WATCH, UTF8_OUTPUT, end, start
from ...protocol.errors import EXIT_FAILED, ZmqrtError
from ...protocol.timing import Backoff, RestartPolicy

_LAST_WORDS: Final = 20
"""Lines of output kept of each child, to tell why it ended."""
_LAST_WORDS_S: Final = 1.0
"""Time to read what a child wrote before it ended: it lies in the pipe already."""
_FIRST_DELAY_S: Final = 0.5
_MOST_DELAY_S: Final = 10.0
_HEALTHY_S: Final = 20.0
"""One that has served so long is started again at once; one that dies young, later and later."""
_GRACE_S: Final = 5.0
"""For children whose parent was killed. Nobody waits for answers: time to say goodbye and to free a GPU, no more."""


class ChildState(enum.Enum):
    """Where a child is: STARTING until its ready line, READY, WAITING to be started again, GONE for good."""

    STARTING = "starting"
    READY = "ready"
    WAITING = "restarting"
    GONE = "stopped"


class ChildFailedError(ZmqrtError):
    """A child ended before it was ever ready: starting it again would end the same way."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Child:
    """One role in a process of its own. All but reading its output happens in the supervisor's thread."""

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], *, most_delay_s: float = _MOST_DELAY_S
    ) -> None:
        self.name = name
        self.module = module
        self.arguments = list(arguments)
        self.state = ChildState.GONE
        self.endpoints: dict[str, str] = {}
        self.restarts = 0
        self.exit_code: int | None = None
        """Of the last process that ended."""
        self.words: deque[str] = deque(maxlen=_LAST_WORDS)
        self.retry_at = 0.0
        self._policy = RestartPolicy(
            Backoff(random.Random(), first_s=_FIRST_DELAY_S, most_s=most_delay_s), healthy_s=_HEALTHY_S, load_tries=1
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process id, while there is one."""
        return self._process.pid if self._process is not None else None

    def start(self, lines: Lines) -> None:
        """Start it; each line of its output goes into the queue."""
        self.state = ChildState.STARTING
        self.words.clear()  # a later end is not to be explained by words of an earlier life
        self._process = start(
            PARENT_WATCH,
            str(_GRACE_S),
            self.module,
            *self.arguments,
            env={**UTF8_OUTPUT, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=_read, args=(self, self._process.stdout, lines), daemon=True)
        self._reader.start()

    def parse(self, line: str) -> dict[str, Any] | None:
        """Note what a line of output says of its state; return the line parsed where it is a record."""
        record = _record(line)
        if record is None or record.get("level") in ("error", "critical"):
            self.words.append(str(record["message"]) if record else line)
        if record is not None and record.get("event") == "ready":
            self.state = ChildState.READY
            self.endpoints = dict(record.get("endpoints", {}))
            self._policy.ready(time.monotonic())
        return record

    def reap(self) -> int | None:
        """Return the exit code if it has just ended; all that it wrote has been read then."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self.kill()
        self.exit_code = code
        return code

    def start_later(self, code: int, now: float) -> None:
        """Decide when one that has ended is started again.

        Raises:
            ChildFailedError: it was never ready.
        """
        retry_at = self._policy.ended(now)
        if retry_at is None:
            raise ChildFailedError(f"{self.name} did not start: {self.why(code)}", code if code > 0 else EXIT_FAILED)
        self.state = ChildState.WAITING
        self.restarts += 1
        self.retry_at = retry_at

    def why(self, code: int) -> str:
        """Say why it ended, in its own last words if there are any."""
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = self.last_words()
        return f"{last} ({cause})" if last else cause

    def last_words(self) -> str:
        """Return the last error that it logged, or the last line that was no record."""
        return next((line for line in reversed(self.words) if line.strip()), "").removeprefix("error: ")

    def drain(self) -> None:
        """Let it finish what it does and end."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"drain\n")

    def has_ended(self) -> bool:
        """Say whether it is gone for good."""
        self.reap()
        return self._process is None

    def kill(self) -> None:
        """End it now, with everything that it has started."""
        if self._process is not None and self._reader is not None:
            end(self._process)
            self._reader.join(_LAST_WORDS_S)
            self._process = self._reader = None
            self.state = ChildState.GONE


Lines = queue.SimpleQueue[tuple[Child, str]]
OnRecord = Callable[[Child, dict[str, Any]], None]
OnEnd = Callable[[Child, str], None]


class Supervisor:
    """Keep children running. Leaving its `with` block ends every one of them, whatever happened."""

    def __init__(self, on_record: OnRecord, on_end: OnEnd) -> None:
        self.children: list[Child] = []
        self._on_record = on_record
        self._on_end = on_end
        self._lines: Lines = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def add(self, child: Child) -> Child:
        """Start a child and keep it running from now on."""
        self.children.append(child)
        child.start(self._lines)
        return child

    def step(self) -> None:
        """Read what children wrote, see who has ended, start again what is due. Call it some times a second.

        Raises:
            ChildFailedError: a child ended before it was ever ready.
        """
        self._read_lines()
        now = time.monotonic()
        for child in self.children:
            code = child.reap()
            if code is not None:
                self._read_lines()  # its last words
                child.start_later(code, now)
                self._on_end(child, child.why(code))
            if child.state is ChildState.WAITING and now >= child.retry_at:
                child.start(self._lines)

    def drain(self, children: Sequence[Child]) -> None:
        """Ask children to leave; `have_ended` tells when they have."""
        for child in children:
            child.drain()

    def have_ended(self, children: Sequence[Child]) -> bool:
        """Say whether all of them are gone for good."""
        self._read_lines()
        left = [child for child in children if not child.has_ended()]
        return not left

    def kill(self) -> None:
        """End all of them now."""
        for child in self.children:
            child.kill()

    def _read_lines(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                child, line = self._lines.get_nowait()
                record = child.parse(line)
                if record is not None:
                    self._on_record(child, record)


def _read(child: Child, stream: IO[bytes], lines: Lines) -> None:
    with stream, contextlib.suppress(OSError, ValueError):
        for line in stream:
            lines.put((child, line.decode("utf-8", "replace").rstrip()))


def _record(line: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] | None = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return record
