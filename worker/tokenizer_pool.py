"""Encodes prompts beside the loop of the node, in processes that may be killed: one for short prompts, one for long.

What a prompt costs is decided by strangers: the model's template is a program, a text may have megabytes. So neither
runs in the agent, whose heartbeats and streams would stand still (`tokenizer_process.py` says why a thread would not
do). A process that was ended by a prompt is started again, the request gets an error, and those behind it are encoded
then. One that was ended or stopped from outside is no fault of its prompt: that is encoded again, here or by another
node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
from array import array
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from ..protocol import children
from ..protocol.errors import ErrorKind, RequestError, request_error
from .model_files import ModelError
from .preprocess import ServiceLimits
from .tokenizer_process import HEAD, EncodeReply, EncodeRequest, TokenizerLoaded, allowed_s, framed

log = logging.getLogger(__name__)

LONG_BYTES: Final = 64 << 10
"""From here on a prompt may take longer than the others should wait."""
_RELIEF_S: Final = 0.25
"""A usual prompt takes a few milliseconds, and who waits behind one that takes more waits no longer than this."""
_TRIES: Final = 2
"""For a prompt whose process is ended from outside: what kills two in a row (the machine's memory?) may kill all."""
_START_S: Final = 180.0
_STUCK_S: Final = 120.0
"""By the clock: far beyond what the process may take of the processor, for one that waits for something else."""
_LOOK_S: Final = 1.0
_STILL_LOOKS: Final = 5
"""Looks in a row at which it has neither computed nor waited for the processor: it is stopped, or hangs."""
_EXIT_S: Final = 0.5
"""How long after the end of its channel the exit code of a process is known."""
_FROM_OUTSIDE: Final = frozenset(
    -getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
"""Ends that no prompt makes by itself: a person, a supervisor, or a machine without memory."""
_MODULE: Final = f"{__package__}.tokenizer_process"
_loaded: Final = msgspec.msgpack.Decoder(TokenizerLoaded)
_reply: Final = msgspec.msgpack.Decoder(EncodeReply)


class EndedByPromptError(Exception):
    """The process took more than it may."""


class EndedFromOutsideError(Exception):
    """The process was ended or stopped by something else than its prompt, which may be encoded again."""


@dataclass(frozen=True, slots=True)
class PendingPrompt:
    """A prompt to encode; `done` gets the ids, or why there are none. One that nobody wants any more is skipped."""

    body: bytes
    limits: ServiceLimits
    is_wanted: Callable[[], bool]
    done: Callable[[list[int] | RequestError], None]


class TokenizerPool:
    """The processes of a node. Their queues are bounded by what the node takes at once."""

    def __init__(self, directory: Path) -> None:
        self._short, self._long = _Tokenizer(directory), _Tokenizer(directory)
        self._relief: asyncio.TimerHandle | None = None

    async def load(self) -> TokenizerLoaded:
        """Start the first one. Raises ModelError with its words if tokenizer or template are of no use."""
        return await self._short.load()

    def encode(self, prompt: PendingPrompt) -> None:
        """Queue a prompt."""
        if len(prompt.body) >= LONG_BYTES:
            self._long.put(prompt)
            return
        self._short.put(prompt)
        if self._relief is None and self._short.is_busy:
            self._relief = asyncio.get_running_loop().call_later(_RELIEF_S, self._relieve, self._short.count)

    def _relieve(self, count: int) -> None:
        """Let those who wait behind a prompt that takes long go to the other process, if that has nothing to do."""
        self._relief = None
        if self._short.count == count and not self._long.is_busy:
            for prompt in self._short.take_waiting():
                self._long.put(prompt)
        if self._short.is_busy:
            self._relief = asyncio.get_running_loop().call_later(_RELIEF_S, self._relieve, self._short.count)

    def close(self) -> None:
        """End the processes, whatever they do."""
        if self._relief is not None:
            self._relief.cancel()
        for tokenizer in (self._short, self._long):
            tokenizer.close()

    @property
    def pids(self) -> list[int]:
        """Return the processes that run now."""
        return [each.process.pid for each in (self._short, self._long) if each.process is not None]


class _Tokenizer:
    """A process, started when it is needed and after each end, and the prompts that wait for it."""

    def __init__(self, directory: Path) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.is_busy = False
        self.count = 0
        """Prompts begun."""
        self._directory = directory
        self._queue: asyncio.Queue[PendingPrompt] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    # --- prompts -----------------------------------------------------------------------------------------------------

    def put(self, prompt: PendingPrompt) -> None:
        self.is_busy = True
        self._queue.put_nowait(prompt)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def take_waiting(self) -> list[PendingPrompt]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._end()

    async def _work(self) -> None:
        while True:
            self.is_busy = not self._queue.empty()
            prompt = await self._queue.get()
            self.is_busy = True
            self.count += 1
            if prompt.is_wanted():
                prompt.done(await self._encode(prompt))
            if self.process is None:
                with contextlib.suppress(ModelError):  # tried again when there is something to encode
                    await self.load()

    async def _encode(self, prompt: PendingPrompt) -> list[int] | RequestError:
        for _ in range(_TRIES):
            try:
                reply = await self._ask(EncodeRequest(prompt.body, prompt.limits))
            except ModelError as error:  # it could be used when the node started
                text = f"no tokenizer process can be started: {error}"
                return request_error(ErrorKind.ENGINE_RESTARTED, text)
            except EndedByPromptError:
                return _too_costly(prompt)
            except EndedFromOutsideError as error:
                log.warning("the tokenizer process %s; a new one is started, and encodes the prompt again", error)
                continue
            if reply.kind:
                return request_error(ErrorKind(reply.kind), reply.text)
            return array("I", reply.ids).tolist()
        text = f"the tokenizer process was ended from outside {_TRIES} times in a row"
        return request_error(ErrorKind.ENGINE_RESTARTED, f"{text} (is the machine out of memory?)")

    # --- the process -------------------------------------------------------------------------------------------------

    async def load(self) -> TokenizerLoaded:
        """Start the process. Raises ModelError with its words if tokenizer or template are of no use."""
        try:
            return await self._load()
        except EndedFromOutsideError as error:
            raise ModelError(f"the tokenizer process {error}, while it loaded tokenizer and template") from None

    async def _load(self) -> TokenizerLoaded:
        why = "it takes too long"
        try:
            async with asyncio.timeout(_START_S):
                await self._start()
                loaded = _loaded.decode(await self._receive())
        except TimeoutError:
            pass
        except EOFError:
            self._raise_if_from_outside()
            if self.process is None or self.process.returncode != -signal.SIGPROF:  # which ends what computes too long
                why = "its process ended before it was ready; what it wrote stands above"
        except OSError as error:
            why = str(error)
        else:
            if not loaded.error:
                return loaded
            self._end()
            raise ModelError(loaded.error)
        self._end()
        raise ModelError(f"tokenizer and chat template of {self._directory} cannot be used: {why}")

    async def _ask(self, request: EncodeRequest) -> EncodeReply:
        """Have a prompt encoded, by a new process if need be. After an error the process is gone."""
        if self.process is None:
            await self._load()
        try:
            return _reply.decode(await self._watched(self._exchange(framed(request))))
        except TimeoutError:
            self._end()
            raise EndedFromOutsideError("stands still") from None
        except (EOFError, OSError):
            self._raise_if_from_outside()
            self._end()
            raise EndedByPromptError from None

    async def _watched(self, answer: Coroutine[Any, Any, bytes]) -> bytes:
        """Wait for the answer. Raises TimeoutError if the process stands still."""
        assert self.process is not None
        task, stills, before = asyncio.ensure_future(answer), 0, -1
        try:
            for _ in range(int(_STUCK_S / _LOOK_S)):
                if (await asyncio.wait([task], timeout=_LOOK_S))[0]:
                    return task.result()
                used = _computed(self.process.pid)
                stills = stills + 1 if used == before else 0
                if stills >= _STILL_LOOKS:
                    break
                before = -1 if used is None else used
            raise TimeoutError
        finally:
            task.cancel()
            await asyncio.wait([task])  # before the process ends: nobody reads then

    async def _start(self) -> None:
        ours, its = socket.socketpair()
        with its:
            self.process = children.start(
                _MODULE,
                str(its.fileno()),
                str(self._directory),
                env={"TOKENIZERS_PARALLELISM": "false"},  # one text at a time; engines want the rest
                pass_fds=[its.fileno()],
            )
        self._streams = await asyncio.open_unix_connection(sock=ours)

    async def _exchange(self, request: bytes) -> bytes:
        assert self._streams is not None
        self._streams[1].write(request)
        return await self._receive()

    async def _receive(self) -> bytes:
        assert self._streams is not None
        reader = self._streams[0]
        (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
        return await reader.readexactly(length)

    def _raise_if_from_outside(self) -> None:
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(_EXIT_S)
            if code in _FROM_OUTSIDE:
                self._end()
                raise EndedFromOutsideError(f"was ended by signal {-code}") from None

    def _end(self) -> None:
        """End the process, whatever it does."""
        if self._streams is not None:
            self._streams[1].transport.abort()
        if self.process is not None:
            children.end(self.process)
        self._streams = self.process = None


def _computed(pid: int) -> int | None:
    """Say how much a process has computed, in ticks; None if it waits for the processor, or nobody can tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "R" else int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None


def _too_costly(prompt: PendingPrompt) -> RequestError:
    text = (
        "the prompt could not be encoded: the model's chat template, or the text itself, takes more than "
        f"{allowed_s(len(prompt.body)):.0f} s of computing, or too much memory"
    )
    log.warning("%s; the tokenizer process is started again", text)
    return request_error(ErrorKind.MODEL_RAISED, text)
