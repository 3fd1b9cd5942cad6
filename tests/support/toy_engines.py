"""Engines for tests of the engine process, one factory each: `--engine support.toy_engines:NAME`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from zmqrt.worker.engines.base import (
    BatchEngine,
    Capacity,
    EngineFatalError,
    EngineSpec,
    EngineStats,
    Item,
    ItemResult,
    Progress,
    StartAgainError,
    StreamEngine,
    TokenEngine,
    TokenEvent,
    TokenRequest,
)
from zmqrt.worker.engines.generate.schedule import EngineStep, SequenceStep
from zmqrt.worker.engines.generate.watchdog import Watchdog
from zmqrt.worker.engines.mock import MockEngine, MockRunner, MockTiming


class Speaker:
    """Says the words of the prompt one by one; some words have an effect."""

    def capacity(self) -> Capacity:
        """Two at once."""
        return Capacity(slots=2, context=100)

    async def generate(self, task: dict[str, Any]) -> AsyncIterator[str]:
        """Speak. `raise` raises, `forever` goes on until cancelled, `block` holds up the event loop."""
        for word in task["prompt"].split():
            if word == "raise":
                raise ValueError("told to raise")
            if word == "block":
                time.sleep(60)  # noqa: ASYNC251 - that is the point
            yield word
            while word == "forever":
                await asyncio.sleep(0.01)
                yield word

    async def close(self) -> None:
        """Nothing to free."""


class Doomed:
    """Ends its first request with an error, and can do nothing after that."""

    _broken: str | None = None

    def submit(self, request: TokenRequest) -> None:
        """Take it in."""
        self._ticket = request.ticket

    def cancel(self, ticket: int) -> None:
        """Too late."""

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Break."""
        if self._broken is not None:
            raise EngineFatalError(self._broken)
        self._broken = "the device is gone"
        return [
            TokenEvent(ticket=self._ticket, finish_reason="error", error=self._broken),
            TokenEvent(ticket=self._ticket + 1, token_ids=[1]),
        ]

    def capacity(self) -> Capacity:
        """One."""
        return Capacity(slots=2, context=100)

    def stats(self) -> EngineStats:
        """None kept."""
        return EngineStats()

    def close(self) -> None:
        """Fail at this as well."""
        raise RuntimeError("cannot even close")


class Forgetful:
    """A batch engine that loses an item."""

    def run(self, items: list[Item]) -> list[ItemResult]:
        """Answer all but the last."""
        return [ItemResult(ticket=item.ticket, body={}) for item in items[:-1]]

    def capacity(self) -> Capacity:
        """Eight."""
        return Capacity(slots=8, context=100)

    def close(self) -> None:
        """Nothing to free."""


def speaker(spec: EngineSpec, progress: Progress) -> StreamEngine:
    """Make one."""
    return Speaker()


def doomed(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Make one."""
    return Doomed()


def forgetful(spec: EngineSpec, progress: Progress) -> BatchEngine:
    """Make one."""
    return Forgetful()


def nothing_known(spec: EngineSpec, progress: Progress) -> Any:
    """Return what is no engine."""
    return object()


def haunted(_spec: EngineSpec, _progress: Progress) -> TokenEngine:
    """Fail, and leave a thread behind that keeps the process from ending."""
    threading.Thread(target=threading.Event().wait).start()
    raise RuntimeError("a thread of its own goes on")


def raising(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Fail half way."""
    progress("loading", 50.0)
    raise OSError("no weights\nin this directory")


def hungry(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Ask for more memory than there is, in torch's words, under an error of its own."""
    progress("loading", 50.0)
    try:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 140737488355328 bytes. Error code 12 (Cannot allocate memory)"
        )
    except RuntimeError as error:
        raise ValueError("the weights could not be read") from error


def greedy(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Be ended by the kernel for its hunger."""
    progress("loading", 50.0)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class _FaultyRunner(MockRunner):
    """Breaks like a GPU: the step that has a certain prompt in it raises, and what was computed is lost."""

    def launch(self, step: EngineStep) -> list[SequenceStep]:
        """Compute a step, unless "fault" is asked."""
        if any(part.sequence.request.prompt_ids == list(b"fault") for part in step.parts):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().launch(step)


def faulty(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Make the mock, on a device that breaks."""
    engine = MockEngine(slots=4, context=100_000, timing=MockTiming(step_ms=2.0))
    engine.runner = _FaultyRunner(4 * 100_000, timing=MockTiming(step_ms=2.0), may_end=True, clock=time.monotonic)
    return engine


def losing(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Lose the device to one thing after the other, until four are left out."""
    count = int(spec.options.get("left_out", "0"))
    if count < 4:
        raise StartAgainError(f"lost it to thing {count + 1}", {"left_out": str(count + 1)})
    engine = MockEngine(slots=4, context=100, timing=MockTiming(step_ms=2.0))
    engine.fallback = f"{count} things left out"
    return engine


def hung(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Wait for a device while it warms up, for ever."""
    with Watchdog(0.3) as watchdog:
        progress = watchdog.watching(progress)
        progress("loading", 50.0)
        progress("warming", 10.0)
        time.sleep(600)
    raise AssertionError


def stuck(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Never come back."""
    progress("loading", 10.0)
    time.sleep(600)
    raise AssertionError


def _idle(up: Connection) -> None:
    """Say that it has begun, and do nothing."""
    up.send("up")
    time.sleep(600)


def parent(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Start a process as libraries do, and tell its number in the file that is named."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    child = context.Process(target=_idle, args=(its,))
    child.start()
    ours.recv()
    Path(spec.options["pid_file"]).write_text(str(child.pid), encoding="utf-8")
    return MockEngine(slots=4, context=100)
