"""Prompts are read beside the loop of the node: by processes that may be killed, one for short and one for long ones.

What a prompt costs is decided by strangers: the model's template is a program, a text may have megabytes. So neither
runs in the agent, whose heartbeats and streams would stand still (`reader_child.py` says why a thread would not do). A
process that was ended by a prompt is started again, the request gets an error, and those behind it are read then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from ..protocol.children import python
from ..protocol.errors import Kind, RequestError, request_error
from .model_error import ModelError
from .prepare import Bounds
from .reader_child import HEAD, Asked, Loaded, Told, allowed_s, framed

log = logging.getLogger(__name__)

LONG_BYTES: Final = 64 << 10
"""From here on a prompt may take longer than the others should wait."""
_RELIEF_S: Final = 0.25
"""A usual prompt is read in a few milliseconds, and who waits behind one that is not waits no longer than this."""
_START_S: Final = 180.0
_STUCK_S: Final = 120.0
"""By the clock: far beyond what the process may take of the processor, for one that waits for something else."""
_MODULE: Final = f"{__package__}.reader_child"
_loaded: Final = msgspec.msgpack.Decoder(Loaded)
_told: Final = msgspec.msgpack.Decoder(Told)


@dataclass(frozen=True, slots=True)
class Reading:
    """One prompt to read; `done` is told the ids, or why there are none. One that nobody wants any more is skipped."""

    body: bytes
    bounds: Bounds
    is_wanted: Callable[[], bool]
    done: Callable[[list[int] | RequestError], None]


class Readers:
    """The processes of a node. Their queues are bounded by what the node takes at once."""

    def __init__(self, directory: Path) -> None:
        self._short, self._long = _Reader(directory), _Reader(directory)
        self._relief: asyncio.TimerHandle | None = None

    async def load(self) -> Loaded:
        """Start the first one. Raises ModelError with its words if tokenizer or template are of no use."""
        return await self._short.load()

    def read(self, reading: Reading) -> None:
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


class _Reader:
    """One process, started when it is needed, and who waits for it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._queue: asyncio.Queue[Reading] = asyncio.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self.is_busy = False
        self.count = 0
        """Prompts begun."""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def take_waiting(self) -> list[Reading]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def put(self, reading: Reading) -> None:
        self.is_busy = True
        self._queue.put_nowait(reading)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def load(self) -> Loaded:
        try:
            async with asyncio.timeout(_START_S):
                return await self._start()
        except (TimeoutError, EOFError, OSError) as error:
            self._end()
            why = "it takes too long" if isinstance(error, TimeoutError | EOFError) else str(error)
            text = f"tokenizer and chat template of {self._directory} cannot be used: {why}"
            raise ModelError(text) from None

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._end()

    async def _work(self) -> None:
        while True:
            self.is_busy = not self._queue.empty()
            reading = await self._queue.get()
            self.is_busy = True
            self.count += 1
            if reading.is_wanted():
                reading.done(await self._read(reading))
            if self._channel is None:
                with contextlib.suppress(ModelError):  # tried again when there is something to read
                    await self.load()

    async def _read(self, reading: Reading) -> list[int] | RequestError:
        try:
            if self._channel is None:
                await self.load()
            async with asyncio.timeout(_STUCK_S):
                told = _told.decode(await self._exchange(framed(Asked(reading.body, reading.bounds))))
        except ModelError as error:
            return request_error(Kind.MODEL_RAISED, str(error))
        except (TimeoutError, EOFError, OSError):
            self._end()
            text = (
                "the prompt could not be encoded: the model's chat template, or the text itself, takes more than "
                f"{allowed_s(len(reading.body)):.0f} s of computing, or too much memory"
            )
            log.warning("%s; the process that reads prompts is started again", text)
            return request_error(Kind.MODEL_RAISED, text)
        if told.kind:
            return request_error(Kind(told.kind), told.text)
        return array("I", told.ids).tolist()

    # --- the process -------------------------------------------------------------------------------------------------

    async def _start(self) -> Loaded:
        self._spawn()
        loaded = _loaded.decode(await self._message())
        if loaded.error:
            self._end()
            raise ModelError(loaded.error)
        return loaded

    def _spawn(self) -> None:
        """Start the process from the main thread: it ends with the thread that started it (`parentage.py`)."""
        self._channel, its = socket.socketpair()
        with its:
            self._channel.setblocking(False)
            self._process = subprocess.Popen(
                python(_MODULE, str(os.getpid()), str(its.fileno()), str(self._directory)),
                pass_fds=[its.fileno()],
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},  # one text at a time; engines want the rest
                stdin=subprocess.PIPE,  # its end of file tells the child that we are gone
                stdout=sys.__stderr__,
                process_group=0,  # Ctrl-C reaches the agent alone, which drains first
            )

    async def _exchange(self, data: bytes) -> bytes:
        assert self._channel is not None
        await asyncio.get_running_loop().sock_sendall(self._channel, data)
        return await self._message()

    async def _message(self) -> bytes:
        (length,) = HEAD.unpack(await self._exactly(HEAD.size))
        return await self._exactly(length)

    async def _exactly(self, length: int) -> bytes:
        assert self._channel is not None
        loop, data = asyncio.get_running_loop(), b""
        while len(data) < length:
            piece = await loop.sock_recv(self._channel, length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()  # killed, it goes at once
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._channel = self._process = None
