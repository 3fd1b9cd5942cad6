"""One run of an engine process, from the agent's side: its socket, its descriptors, its end. Decides nothing.

Each run has a socket of its own, so what a dead process still had to say is never taken for the words of the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import zmq

from ..protocol import children, transport
from ..protocol.timing import RestartPolicy
from .device_discovery import DeviceSpec
from .engines import ipc
from .engines.base import EngineSpec
from .engines.oom import REMEDIES

_MODULE: Final = "zmqrt.worker.engines.process"
_LOOK_EVERY_S: Final = 0.05
"""How soon an end is seen on systems that have no descriptor for a process."""
_MOST_PATH: Final = 80
"""The path of a Unix socket has at most 107 bytes; 27 are for our folder and the file in it."""
log = logging.getLogger(__name__)


class EngineChild:
    """A process that has been started. `wake` is called when there may be something to read, and when it has ended."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        spec: EngineSpec,
        device: DeviceSpec,
        *,
        policy: RestartPolicy,
        wake: Callable[[], None],
        log_arguments: Sequence[str],
    ) -> None:
        """Start it. Raises OSError or ZMQError if that is not possible."""
        self.is_ready = False
        self.last_words = ""
        """Why it ends, by itself or by us."""
        self._policy = policy
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as undo:
            self._folder: Path | None = _private_folder()
            undo.callback(self._hide)
            endpoint = f"ipc://{self._folder}/pair"
            self._pair = transport.engine_pair(context, endpoint, bind=True)
            undo.callback(self._pair.close, 0)
            self._process = _spawn(endpoint, spec, device, log_arguments)
            undo.pop_all()
        self._pid_descriptor = _pid_descriptor(self._process.pid)
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(transport.descriptor(self._pair), wake)
        if self._pid_descriptor is not None:
            self._loop.add_reader(self._pid_descriptor, wake)
        else:
            self._look()
        self._loop.call_soon(wake)  # the socket's descriptor is edge-triggered: look once by ourselves

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return how it ended (negative: by that signal), or None while it runs."""
        return self._process.poll()

    def receive(self) -> list[ipc.FromEngine]:
        """Return everything that has arrived."""
        messages: list[ipc.FromEngine] = []
        with contextlib.suppress(zmq.Again):
            while True:
                messages += ipc.decode_from_engine(self._pair.recv(zmq.NOBLOCK))
                self._hide()
        for message in messages:
            if isinstance(message, ipc.EngineReady):
                self.is_ready = True
                self._policy.ready(self._loop.time())
            elif isinstance(message, ipc.EngineFailed):
                self.last_words = message.error
                self._policy.is_hopeless |= message.is_final
                self.send([ipc.Stop()])  # it waits for this, so that its exit cannot overtake its words
        return messages

    def has_input(self) -> bool:
        """Whether something is left to read."""
        return transport.has_input(self._pair)

    def send(self, messages: Sequence[ipc.ToEngine]) -> None:
        """Send one envelope; to a process that is gone it goes nowhere, and its end is reported soon."""
        with contextlib.suppress(zmq.Again):
            self._pair.send(ipc.encode(messages), zmq.NOBLOCK)
        if transport.has_input(self._pair):  # the send may have eaten the wake-up
            self._wake()

    def stop(self) -> None:
        """Let it end by itself. One that is inside a loader hears nobody, and has nothing to lose: it is killed."""
        if self.is_ready:
            self.send([ipc.Stop()])
        else:
            self._process.kill()

    def kill(self, reason: str) -> None:
        """End it by force, even if it is stopped or stuck."""
        self.last_words = reason
        self._process.kill()

    def close(self) -> None:
        """Release everything; kills it if it still runs."""
        self._loop.remove_reader(transport.descriptor(self._pair))
        self._pair.close(0)
        if self._pid_descriptor is not None:
            self._loop.remove_reader(self._pid_descriptor)
            os.close(self._pid_descriptor)
        if self._timer is not None:
            self._timer.cancel()
        children.end(self._process)
        self._hide()

    def _hide(self) -> None:
        """Take the socket's name away: nobody else shall connect, and a node that is killed leaves no files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _look(self) -> None:
        if self._process.poll() is not None:
            self._wake()
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)


def _private_folder() -> Path:
    """Make a folder for one socket; mkdtemp makes it private (0700), for whoever can connect is obeyed."""
    base = tempfile.gettempdir()
    is_short = len(os.fsencode(base)) <= _MOST_PATH
    return Path(tempfile.mkdtemp(prefix="zmqrt-", dir=base if is_short else "/tmp"))  # noqa: S108


def _spawn(
    endpoint: str, spec: EngineSpec, device: DeviceSpec, log_arguments: Sequence[str]
) -> subprocess.Popen[bytes]:
    mine = msgspec.structs.replace(spec, device=device.name_inside)
    arguments = ("--endpoint", endpoint, "--spec", msgspec.json.encode(mine).decode(), *log_arguments)
    return children.start(_MODULE, *arguments, env=device.environment(threads=spec.options.get("threads", "1")))


def _pid_descriptor(pid: int) -> int | None:
    """Return a descriptor that is readable once the process has ended; only Linux has one."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def describe_end(code: int, last_words: str, *, was_ready: bool = True) -> str:
    """Say how a process ended. What is killed while it loads has most likely asked for more memory than there is."""
    if last_words:
        return last_words
    if code == -signal.SIGKILL and not was_ready:
        return f"killed by SIGKILL while it loaded, perhaps by the kernel for want of memory (see dmesg); {REMEDIES}"
    if code >= 0:
        return f"exit code {code}, see its log"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
