"""Runs the engine processes of a node: one for each device, started again after its end, all stopped at the end.

What becomes of the requests of a process that has ended is decided in the core.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import msgspec

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
class _DeviceProcess:
    """A device, and the engine process that runs on it at the moment."""

    device: DeviceSpec
    policy: RestartPolicy = field(default_factory=restart_policy)
    child: EngineChild | None = None
    end: str | None = None
    """How the process ended, once it has and all that it sent is read; until `exits` has yielded it."""
    timer: asyncio.TimerHandle | None = None
    options: dict[str, str] = field(default_factory=dict[str, str])
    """Those that a process has asked for the ones after it."""


class EngineSupervisor:
    """Runs `spec` on each of the devices. `wake` is called whenever there may be something to read or an end to see.

    `async with` starts the processes, and stops them. `pids` has those that run.
    """

    def __init__(
        self,
        spec: EngineSpec,
        devices: Sequence[DeviceSpec],
        *,
        wake: Callable[[], None],
        log_level: str = "info",
        log_format: str = "text",
        worker_id: str = "",
    ) -> None:
        self._spec = spec
        self._processes = {device.id: _DeviceProcess(device) for device in devices}
        self._wake = wake
        self._given_up: list[EngineChild] = []
        """Processes that could not be killed."""
        self._log_arguments = ("--log-level", log_level, "--log-format", log_format, f"--worker-id={worker_id}")

    # --- start and stop ----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        for process in self._processes.values():
            self._start(process)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let every process end by itself, then by force; after this there are none."""
        loop, stopped = asyncio.get_running_loop(), list[EngineChild]()
        for process in self._processes.values():
            if process.timer is not None:
                process.timer.cancel()
            if process.child is not None:
                process.child.stop()
                stopped.append(process.child)
                process.child = None
        give_up_at = loop.time() + _STOP_S
        try:
            while any(child.exit_code() is None for child in stopped):
                if loop.time() >= give_up_at:
                    log.warning("an engine process did not stop within %.1f s and is killed", _STOP_S)
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            for child in stopped:
                child.close()
            for child in self._given_up:
                child.reap()

    def _start(self, process: _DeviceProcess) -> None:
        process.timer = process.end = None
        try:
            process.child = EngineChild(
                msgspec.structs.replace(self._spec, options={**self._spec.options, **process.options}),
                process.device,
                policy=process.policy,
                wake=self._wake,
                log_arguments=self._log_arguments,
            )
        except OSError as error:
            process.end = f"the engine process could not be started: {error}"
            self._wake()

    # --- for the agent -----------------------------------------------------------------------------------------

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by device."""
        return {name: process.child.pid for name, process in self._processes.items() if process.child is not None}

    def receive(self) -> Iterator[tuple[str, list[ipc.FromEngine]]]:
        """Yield what has arrived, by device."""
        for name, process in self._processes.items():
            if process.child is None:
                continue
            # Looked at first: what is read after it is all that there will ever be.
            code = process.child.exit_code() if process.child.may_have_ended else None
            messages = process.child.receive()
            if code is not None:
                process.end = describe_end(code, process.child.last_words, was_ready=process.child.is_ready)
            if messages:
                yield name, messages

    def exits(self) -> Iterator[tuple[str, str, bool]]:
        """Yield processes that are gone: device, reason, whether another one is started."""
        for name, process in self._processes.items():
            if process.end is None:
                continue
            reason, process.end = process.end, None
            if process.child is not None:
                self._learn(process, process.child.options_of_next)
                process.child.close()
                self._given_up = [child for child in self._given_up if not child.reap()]
                self._given_up += [process.child] * process.child.is_given_up
                process.child = None
            is_restarted = self._start_later(process)
            if not is_restarted and not process.policy.is_hopeless:
                reason = f"{reason} (given up after {process.policy.load_tries} tries)"
            yield name, reason, is_restarted

    def _learn(self, process: _DeviceProcess, options: dict[str, str]) -> None:
        """Give the next process what this one asks for it; tries count anew only where that is something else."""
        if options and not options.items() <= process.options.items():
            process.options |= options
            process.policy.begin_anew()

    def _start_later(self, process: _DeviceProcess) -> bool:
        loop = asyncio.get_running_loop()
        start_at = process.policy.ended(loop.time())
        if start_at is None:
            return False
        log.info("%s: the next engine process starts in %.1f s", process.device.id, start_at - loop.time())
        process.timer = loop.call_at(start_at, self._start, process)
        return True

    def send(self, device: str, messages: Sequence[ipc.ToEngine]) -> None:
        """Send messages in one envelope."""
        child = self._processes[device].child
        if child is not None:
            child.send(messages)

    def restart(self, device: str, reason: str) -> None:
        """Kill the process of a device; its exit is reported like any other, with this reason."""
        child = self._processes[device].child
        if child is not None:
            child.kill(reason)
