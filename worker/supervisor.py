"""The engine processes of a node: starts one for each device, starts it again after its end, stops all at the end.

This is `agent.Engines`. What becomes of the requests of a process that has ended is decided in the core.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import zmq

from ..protocol.timing import Backoff, RestartPolicy
from .device_discovery import DeviceSpec
from .engine_child import EngineChild, describe_end
from .engines import ipc
from .engines.base import EngineSpec

_STOP_S: Final = 2.0
_LOOK_EVERY_S: Final = 0.01
log = logging.getLogger(__name__)


def restart_policy() -> RestartPolicy:
    """Return how the engine processes of one device are started again."""
    return RestartPolicy(Backoff(None, first_s=0.5, most_s=30.0), healthy_s=60.0, load_tries=3)


@dataclass(slots=True)
class _Post:
    """A device, and the process that works on it at the moment."""

    device: DeviceSpec
    policy: RestartPolicy = field(default_factory=restart_policy)
    child: EngineChild | None = None
    is_ready: bool = False
    end: str | None = None
    """How the process ended, once it has and all that it said is read; until `exits` has told of it."""
    last_words: str = ""
    timer: asyncio.TimerHandle | None = None


class EngineSupervisor:
    """Runs `spec` on each of the devices. `wake` is called whenever there may be something to read or an end to see.

    `async with` starts the processes, and stops them. `pids` tells which ones run.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        spec: EngineSpec,
        devices: Sequence[DeviceSpec],
        *,
        wake: Callable[[], None],
        log_level: str = "info",
        log_format: str = "text",
        worker_id: str = "",
    ) -> None:
        self._context = context
        self._spec = spec
        self._posts = {device.id: _Post(device) for device in devices}
        self._wake = wake
        self._log_arguments = ("--log-level", log_level, "--log-format", log_format, f"--worker-id={worker_id}")

    # --- start and stop ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        for post in self._posts.values():
            self._start(post)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(_STOP_S)

    async def stop(self, deadline_s: float) -> None:
        """Let every process end by itself, then by force; after this there are none."""
        children = self._leave()
        give_up_at = asyncio.get_running_loop().time() + deadline_s
        try:
            while any(child.exit_code() is None for child in children):
                if asyncio.get_running_loop().time() >= give_up_at:
                    log.warning("an engine process did not stop within %.1f s and is killed", deadline_s)
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            for child in children:
                child.close()

    def _leave(self) -> list[EngineChild]:
        children: list[EngineChild] = []
        for post in self._posts.values():
            if post.timer is not None:
                post.timer.cancel()
            if post.child is not None:
                children.append(post.child)
                if post.is_ready:
                    post.child.send([ipc.Stop()])
                else:
                    post.child.kill()  # it is inside a loader, which hears nobody, and has nothing to lose
            post.child = None
        return children

    def _start(self, post: _Post) -> None:
        post.timer, post.is_ready, post.last_words, post.end = None, False, "", None
        try:
            post.child = EngineChild(
                self._context, self._spec, post.device, wake=self._wake, log_arguments=self._log_arguments
            )
        except (OSError, zmq.ZMQError) as error:
            post.end = f"the engine process could not be started: {error}"
            self._wake()

    # --- what the agent asks -----------------------------------------------------------------------------------------

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by device."""
        return {name: post.child.pid for name, post in self._posts.items() if post.child is not None}

    def receive(self) -> Iterator[tuple[str, list[ipc.FromEngine]]]:
        """Yield what has arrived, by device."""
        for name, post in self._posts.items():
            if post.child is None:
                continue
            code = post.child.exit_code()  # looked at first: what is read after it is all that there will ever be
            said = post.child.receive()
            self._note(post, post.child, said)
            if code is not None:
                post.end = describe_end(code, post.last_words, was_ready=post.is_ready)
            if said:
                yield name, said

    def _note(self, post: _Post, child: EngineChild, said: list[ipc.FromEngine]) -> None:
        for message in said:
            if isinstance(message, ipc.EngineReady):
                post.is_ready = True
                post.policy.ready(asyncio.get_running_loop().time())
            elif isinstance(message, ipc.EngineFailed):
                post.last_words = message.error
                if message.is_final:
                    post.policy.is_hopeless = True
                child.send([ipc.Stop()])  # it waits for this, so that its exit cannot overtake its words

    def exits(self) -> Iterator[tuple[str, str, bool]]:
        """Yield processes that are gone: device, reason, whether another one is started."""
        for name, post in self._posts.items():
            if post.end is None:
                continue
            reason, post.end = post.end, None
            if post.child is not None:
                post.child.close()
                post.child = None
            is_restarted = self._start_later(post)
            if not is_restarted and not post.policy.is_hopeless:
                reason = f"{reason} (given up after {post.policy.load_tries} tries)"
            yield name, reason, is_restarted

    def _start_later(self, post: _Post) -> bool:
        loop = asyncio.get_running_loop()
        start_at = post.policy.ended(loop.time())
        if start_at is None:
            return False
        log.info("%s: the next engine process starts in %.1f s", post.device.id, start_at - loop.time())
        post.timer = loop.call_at(start_at, self._start, post)
        return True

    def has_input(self) -> bool:
        """Whether something is left to read."""
        return any(post.child is not None and post.child.has_input() for post in self._posts.values())

    def send(self, device: str, messages: Sequence[ipc.ToEngine]) -> None:
        """Send messages in one envelope."""
        child = self._posts[device].child
        if child is not None:
            child.send(messages)

    def restart(self, device: str, reason: str) -> None:
        """Kill the process of a device; its exit is reported like any other, with this reason."""
        post = self._posts[device]
        if post.child is not None:
            post.last_words = reason
            post.child.kill()
