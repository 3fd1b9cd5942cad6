"""A tokenizer process (`tokenizer_process.py`) from the agent's side: its channel, its end, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from ..protocol import children
from .model_error import ModelError
from .tokenizer_process import HEAD, EncodeReply, EncodeRequest, TokenizerLoaded, framed

_START_S: Final = 180.0
_STUCK_S: Final = 120.0
"""By the clock: far beyond what the process may take of the processor, for one that waits for something else."""
_LOOK_S: Final = 1.0
_STILL_LOOKS: Final = 5
"""Looks in a row at which it has neither computed nor waited for the processor: it is stopped, or hangs."""
_GOING_S: Final = 0.5
_FROM_OUTSIDE: Final = frozenset(
    -getattr(signal, name) for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)
"""Ends that no prompt makes by itself: a person, a supervisor, or a machine without memory."""
_MODULE: Final = f"{__package__}.tokenizer_process"
_loaded: Final = msgspec.msgpack.Decoder(TokenizerLoaded)
_told: Final = msgspec.msgpack.Decoder(EncodeReply)


class EndedByPromptError(Exception):
    """The process took more than it may."""


class EndedFromOutsideError(Exception):
    """The process was ended or stopped by something else than its prompt, which may be read again."""


class TokenizerHandle:
    """The process, started when it is needed and after each end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Its process id, while there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def is_there(self) -> bool:
        """Whether it was started and has not ended, as far as anybody has noticed."""
        return self._channel is not None

    async def load(self) -> TokenizerLoaded:
        """Start it. Raises ModelError with its words if tokenizer or template are of no use."""
        try:
            async with asyncio.timeout(_START_S):
                return await self._start()
        except (TimeoutError, EOFError) as error:
            if isinstance(error, EOFError):
                self._raise_if_from_outside()
            why = "it takes too long"
        except OSError as error:
            why = str(error)
        self.end()
        raise ModelError(f"tokenizer and chat template of {self._directory} cannot be used: {why}")

    async def ask(self, asked: EncodeRequest) -> EncodeReply:
        """Have a prompt read, by a new process if need be. After an error the process is gone."""
        if not self.is_there:
            await self.load()
        try:
            return _told.decode(await self._watched(self._exchange(framed(asked))))
        except TimeoutError:
            self.end()
            raise EndedFromOutsideError("stands still") from None
        except (EOFError, OSError):
            self._raise_if_from_outside()
            self.end()
            raise EndedByPromptError from None

    def _raise_if_from_outside(self) -> None:
        code = self._exit_code()
        if code in _FROM_OUTSIDE:
            self.end()
            raise EndedFromOutsideError(f"was ended by signal {-code}") from None

    async def _watched(self, answer: Coroutine[Any, Any, bytes]) -> bytes:
        """Wait for the answer. Raises TimeoutError if the process stands still."""
        assert self._process is not None
        task, stills, before = asyncio.ensure_future(answer), 0, -1
        try:
            for _ in range(int(_STUCK_S / _LOOK_S)):
                if (await asyncio.wait([task], timeout=_LOOK_S))[0]:
                    return task.result()
                used = _computed(self._process.pid)
                stills = stills + 1 if used == before else 0
                if stills >= _STILL_LOOKS:
                    break
                before = -1 if used is None else used
            raise TimeoutError
        finally:
            task.cancel()
            await asyncio.wait([task])  # before the channel is closed: its number may soon be that of another one

    async def _start(self) -> TokenizerLoaded:
        self._spawn()
        loaded = _loaded.decode(await self._message())
        if loaded.error:
            self.end()
            raise ModelError(loaded.error)
        return loaded

    def _spawn(self) -> None:
        """Start the process from the main thread: it ends with the thread that started it (`parent_watch.py`)."""
        self._channel, its = socket.socketpair()
        with its:
            self._channel.setblocking(False)
            self._process = children.start(
                _MODULE,
                str(its.fileno()),
                str(self._directory),
                env={"TOKENIZERS_PARALLELISM": "false"},  # one text at a time; engines want the rest
                pass_fds=[its.fileno()],
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

    def _exit_code(self) -> int:
        """Say how a process ended whose channel is closed (negative: by that signal): a moment later it is known."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_GOING_S)
        return 0

    def end(self) -> None:
        """End it, whatever it does."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            children.end(self._process)
        self._channel = self._process = None


def _computed(pid: int) -> int | None:
    """Say how much a process has computed, in ticks; None if it waits for the processor, or nobody can tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "R" else int(fields[11]) + int(fields[12])
    except (OSError, IndexError, ValueError):
        return None
