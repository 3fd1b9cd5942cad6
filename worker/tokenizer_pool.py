"""Prompts are read beside the loop of the node: by processes that may be killed, one for short and one for long ones.

What a prompt costs is decided by strangers: the model's template is a program, a text may have megabytes. So neither
runs in the agent, whose heartbeats and streams would stand still (`tokenizer_process.py` says why a thread would not
do). A process that was ended by a prompt is started again, the request gets an error, and those behind it are read
then. One that was ended or stopped from outside is no fault of its prompt: that is read again, here or by another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..protocol.errors import ErrorKind, RequestError, request_error
from .model_error import ModelError
from .preprocess import ServiceLimits
from .reader_process import EndedByPromptError, EndedFromOutsideError, TokenizerHandle
from .tokenizer_process import EncodeRequest, TokenizerLoaded, allowed_s

log = logging.getLogger(__name__)

LONG_BYTES: Final = 64 << 10
"""From here on a prompt may take longer than the others should wait."""
_RELIEF_S: Final = 0.25
"""A usual prompt is read in a few milliseconds, and who waits behind one that is not waits no longer than this."""
_TRIES: Final = 2
"""For a prompt whose process is ended from outside: what kills two in a row (the machine's memory?) may kill all."""


@dataclass(frozen=True, slots=True)
class PendingPrompt:
    """One prompt to read; `done` is told the ids, or why there are none. One that nobody wants any more is skipped."""

    body: bytes
    limits: ServiceLimits
    is_wanted: Callable[[], bool]
    done: Callable[[list[int] | RequestError], None]


class TokenizerPool:
    """The processes of a node. Their queues are bounded by what the node takes at once."""

    def __init__(self, directory: Path) -> None:
        self._short, self._long = _Lane(directory), _Lane(directory)
        self._relief: asyncio.TimerHandle | None = None

    async def load(self) -> TokenizerLoaded:
        """Start the first one. Raises ModelError with its words if tokenizer or template are of no use."""
        return await self._short.load()

    def read(self, reading: PendingPrompt) -> None:
        """Queue a prompt."""
        if len(reading.body) >= LONG_BYTES:
            self._long.put(reading)
            return
        self._short.put(reading)
        if self._relief is None and self._short.is_busy:
            self._relief = asyncio.get_running_loop().call_later(_RELIEF_S, self._relieve, self._short.count)

    def _relieve(self, count: int) -> None:
        """Let those who wait behind a prompt that takes long go to the other process, if that has nothing to do."""
        self._relief = None
        if self._short.count == count and not self._long.is_busy:
            for reading in self._short.take_waiting():
                self._long.put(reading)
        if self._short.is_busy:
            self._relief = asyncio.get_running_loop().call_later(_RELIEF_S, self._relieve, self._short.count)

    def close(self) -> None:
        """End the processes, whatever they do."""
        if self._relief is not None:
            self._relief.cancel()
        for one in (self._short, self._long):
            one.close()

    @property
    def pids(self) -> list[int]:
        """Return the processes that run now."""
        return [pid for one in (self._short, self._long) if (pid := one.pid) is not None]


class _Lane:
    """One process and who waits for it."""

    def __init__(self, directory: Path) -> None:
        self._queue: asyncio.Queue[PendingPrompt] = asyncio.Queue()
        self._process = TokenizerHandle(directory)
        self._task: asyncio.Task[None] | None = None
        self.is_busy = False
        self.count = 0
        """Prompts begun."""

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def take_waiting(self) -> list[PendingPrompt]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def put(self, reading: PendingPrompt) -> None:
        self.is_busy = True
        self._queue.put_nowait(reading)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def load(self) -> TokenizerLoaded:
        try:
            return await self._process.load()
        except EndedFromOutsideError as error:
            raise ModelError(
                f"the process that reads prompts {error}, while it loaded tokenizer and template"
            ) from None

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._process.end()

    async def _work(self) -> None:
        while True:
            self.is_busy = not self._queue.empty()
            reading = await self._queue.get()
            self.is_busy = True
            self.count += 1
            if reading.is_wanted():
                reading.done(await self._read(reading))
            if not self._process.is_there:
                with contextlib.suppress(ModelError):  # tried again when there is something to read
                    await self.load()

    async def _read(self, reading: PendingPrompt) -> list[int] | RequestError:
        for _ in range(_TRIES):
            try:
                told = await self._process.ask(EncodeRequest(reading.body, reading.limits))
            except ModelError as error:  # it could be used when the node started
                return request_error(
                    ErrorKind.ENGINE_RESTARTED, f"no process can be started that reads prompts: {error}"
                )
            except EndedByPromptError:
                return _too_costly(reading)
            except EndedFromOutsideError as error:
                log.warning(
                    "the process that reads prompts %s; a new one is started, and reads the prompt again", error
                )
                continue
            if told.kind:
                return request_error(ErrorKind(told.kind), told.text)
            return array("I", told.ids).tolist()
        text = f"the process that reads prompts was ended from outside {_TRIES} times in a row"
        return request_error(ErrorKind.ENGINE_RESTARTED, f"{text} (is the machine out of memory?)")


def _too_costly(reading: PendingPrompt) -> RequestError:
    text = (
        "the prompt could not be encoded: the model's chat template, or the text itself, takes more than "
        f"{allowed_s(len(reading.body)):.0f} s of computing, or too much memory"
    )
    log.warning("%s; the process that reads prompts is started again", text)
    return request_error(ErrorKind.MODEL_RAISED, text)
