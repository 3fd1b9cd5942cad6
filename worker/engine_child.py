"""One run of an engine process, from the agent's side: its channel, its descriptors, its end. Decides nothing.

Each run has a channel of its own, so what a dead process still had to say is never taken for the words of the next.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from ..protocol import children
from ..protocol.timing import RestartPolicy
from .device_discovery import DeviceSpec
from .engines import ipc
from .engines.base import EngineSpec
from .engines.channel import make_channel
from .engines.oom import REMEDIES

_MODULE: Final = "zmqrt.worker.engines.process"
_OUTLIVE_S: Final = 2.0
_KILLED_S: Final = 5.0
"""A process that was killed is gone within milliseconds, after a large core dump within seconds. One that is not waits
inside a driver whose device hangs, perhaps for ever, and what it ran should not wait with it."""
_LOOK_EVERY_S: Final = 0.05
"""How soon an end is seen on systems that have no descriptor for a process."""
log = logging.getLogger(__name__)


class EngineChild:
    """A process that has been started. `wake` is called when there may be something to read, and when it has ended."""

    def __init__(
        self,
        spec: EngineSpec,
        device: DeviceSpec,
        *,
        policy: RestartPolicy,
        wake: Callable[[], None],
        log_arguments: Sequence[str],
    ) -> None:
        """Start it. Raises OSError if that is not possible."""
        self.is_ready = False
        self.last_words = ""
        """Why it ends, by itself or by us."""
        self.options_of_next: dict[str, str] = {}
        """What it asks for the process after it."""
        self._policy = policy
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._channel, its_end = make_channel()
        try:
            with its_end:
                self._process = _spawn(its_end.fileno(), spec, device, log_arguments)
        except BaseException:
            self._channel.close()
            raise
        self._pid_descriptor = _pid_descriptor(self._process.pid)
        self._timer: asyncio.TimerHandle | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self.may_have_ended = False
        """Whether to ask for its exit code: that is a system call, and most passes are about what it has sent."""
        self.is_given_up = False
        """Whether it was killed, and runs."""
        self._is_watched_for_room = False
        self._is_silent = False
        """Whether its channel is at its end."""
        self._loop.add_reader(self._channel, wake)
        if self._pid_descriptor is not None:
            self._loop.add_reader(self._pid_descriptor, self._on_end)
        else:
            self._look()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return how it ended (negative: by that signal), or None while it runs."""
        return -signal.SIGKILL if self.is_given_up else self._process.poll()

    def receive(self) -> list[ipc.FromEngine]:
        """Return everything that has arrived."""
        messages = [message for data in self._channel.receive() for message in ipc.decode_from_engine(data)]
        if self._channel.is_over and not self._is_silent:
            self._is_silent = True
            self._loop.remove_reader(self._channel)  # else its end would be news again and again
            self._loop.call_later(_OUTLIVE_S, self._end_what_is_left)  # usually it has ended by then
        for message in messages:
            if isinstance(message, ipc.EngineReady):
                self.is_ready = True
                self._policy.ready(self._loop.time())
            elif isinstance(message, ipc.EngineFailed):
                self.last_words = message.error
                self._policy.is_hopeless |= message.is_final
                self.options_of_next = message.options
        return messages

    def send(self, messages: Sequence[ipc.ToEngine]) -> None:
        """Send one envelope; to a process that is gone it goes nowhere, and its end is reported soon."""
        self._channel.send(ipc.encode(messages))
        self._watch_for_room()

    def _watch_for_room(self) -> None:
        """Go on sending when an engine that is busy with a step reads again."""
        self._channel.flush()
        if self._channel.has_unsent and not self._is_watched_for_room:
            self._loop.add_writer(self._channel, self._watch_for_room)
        elif not self._channel.has_unsent and self._is_watched_for_room:
            self._loop.remove_writer(self._channel)
        self._is_watched_for_room = self._channel.has_unsent

    def stop(self) -> None:
        """Let it end by itself. One that is inside a loader hears nobody, and has nothing to lose: it is killed."""
        if self.is_ready:
            self.send([ipc.Stop()])
        else:
            self._process.kill()
        self._loop.remove_reader(self._channel)  # nobody reads on, and what lies there would be news for ever

    def kill(self, reason: str) -> None:
        """End it by force, even if it is stopped or stuck."""
        self.last_words = reason
        self._process.kill()
        self._kill_timer = self._loop.call_later(_KILLED_S, self._give_up)

    def _give_up(self) -> None:
        """Take a process for ended that cannot be killed: it computes nothing for anybody any more."""
        if self.exit_code() is None:
            self.is_given_up = True
            self.last_words += "; it cannot be killed, its driver holds it: the device may need a reset, or the machine"
            self._on_end()

    def _on_end(self) -> None:
        self.may_have_ended = True
        self._wake()

    def _end_what_is_left(self) -> None:
        """Kill a process that nobody can hear any more: a thread of its loader may keep it alive."""
        if self.exit_code() is None:
            self.last_words = self.last_words or "it closed its channel and did not end"
            self._process.kill()

    def close(self) -> None:
        """Release everything; kills it if it still runs."""
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()
        if self._pid_descriptor is not None:
            self._loop.remove_reader(self._pid_descriptor)
            os.close(self._pid_descriptor)
        for timer in (self._timer, self._kill_timer):
            if timer is not None:
                timer.cancel()
        if not self.is_given_up:
            children.end(self._process)
        elif self._process.stdin is not None:  # to wait for it would hold up the whole node
            self._process.stdin.close()

    def reap(self) -> bool:
        """Say whether a process that was given up has ended after all, and leave nothing of it if so."""
        return self._process.poll() is not None

    def _look(self) -> None:
        if self._process.poll() is not None:
            self._on_end()
        self._timer = self._loop.call_later(_LOOK_EVERY_S, self._look)


def _spawn(
    descriptor: int, spec: EngineSpec, device: DeviceSpec, log_arguments: Sequence[str]
) -> subprocess.Popen[bytes]:
    mine = msgspec.structs.replace(spec, device=device.name_inside)
    arguments = ("--channel", str(descriptor), "--spec", msgspec.json.encode(mine).decode(), *log_arguments)
    env = device.environment(threads=spec.options.get("threads", ""))
    return children.start(_MODULE, *arguments, env=env, pass_fds=[descriptor])


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
    if code == ipc.EXIT_HUNG:
        return "its device stood still while the engine got ready; its log shows where"
    if code >= 0:
        return f"exit code {code}, see its log"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
