"""Engines for tests with real nodes: `--engine support.process_engines:NAME`, with `PYTHONPATH` as `ENV` has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from zmqrt.worker.engines import mock
from zmqrt.worker.engines.base import (
    Capacity,
    Engine,
    EngineSpec,
    EngineStats,
    Progress,
    StreamEngine,
    TokenEngine,
    TokenEvent,
    TokenRequest,
)
from zmqrt.worker.engines.generate.engine import Drawn, GenerateEngine
from zmqrt.worker.engines.generate.schedule import SchedulerLimits
from zmqrt.worker.engines.mock_tokens import EOS

ENV: Final = {"PYTHONPATH": str(Path(__file__).parents[1])}
"""What a node needs to find this module."""


class Noted:
    """A token engine that writes down the prompt of each request it begins, in a file that outlives its process."""

    def __init__(self, engine: TokenEngine, path: str) -> None:
        self._engine = engine
        self._path = path

    def submit(self, request: TokenRequest) -> None:
        """Take it in, and note it."""
        self._engine.submit(request)
        line = bytes(token for token in request.prompt_ids if token < 256) + b"\n"
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, line)  # one write, so that lines of two engines do not mix
        os.close(handle)

    def cancel(self, ticket: int) -> None:
        """Pass on."""
        self._engine.cancel(ticket)

    def poll(self, timeout_s: float) -> list[TokenEvent]:
        """Pass on."""
        return self._engine.poll(timeout_s)

    def capacity(self) -> Capacity:
        """Pass on."""
        return self._engine.capacity()

    def stats(self) -> EngineStats:
        """Pass on."""
        return self._engine.stats()

    def close(self) -> None:
        """Pass on."""
        self._engine.close()


def noted(spec: EngineSpec, progress: Progress) -> Mapping[str, Engine]:
    """Make the mock, with `--engine-opt notes=PATH` for the file."""
    options = dict(spec.options)
    path = options.pop("notes")
    made = dict(mock.factory(msgspec.structs.replace(spec, options=options), progress))
    text = made[""]
    assert isinstance(text, TokenEngine)
    return {**made, "": Noted(text, path)}


class _HangingRunner(mock.MockRunner):
    """Hangs as a GPU does: once its file is there no step is ever done, while the loop goes on asking for it."""

    def __init__(self, path: str, kv_tokens: int, **of_the_mock: Any) -> None:
        super().__init__(kv_tokens, **of_the_mock)
        self._path = Path(path)
        self._hangs = False

    def collect(self, timeout_s: float) -> Drawn | None:
        """Look for the file; whoever finds it takes it away, so that the next process of this device works."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            self._hangs = True
        if not self._hangs:
            return super().collect(timeout_s)
        time.sleep(timeout_s)
        return None


def hanging(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Make the mock on a device that hangs as soon as there is a file `--engine-opt hang=PATH`."""
    limits = SchedulerLimits(slots=32, context=4096, chunk_tokens=512, depth=2)  # as on a GPU
    kv_tokens = limits.slots * limits.context
    timing = mock.MockTiming(step_ms=float(spec.options["step_ms"]))
    runner = _HangingRunner(spec.options["hang"], kv_tokens, timing=timing, may_end=True, clock=time.monotonic)
    engine = GenerateEngine(runner, kv_tokens=kv_tokens, limits=limits, eos_ids=[EOS])
    engine.revision = mock.REVISION  # type: ignore[attr-defined]  # streams go on only where it is equal
    return engine


def off_at_first(spec: EngineSpec, progress: Progress) -> TokenEngine:
    """Make the real engine, whose own decoder is wrong here: the self-test finds it."""
    from zmqrt.worker.engines.generate.factory import factory
    from zmqrt.worker.engines.generate.llama import LlamaDecoder

    forward: Any = LlamaDecoder.forward
    LlamaDecoder.forward = lambda self, *arguments: forward(self, *arguments) * 0.5  # type: ignore[method-assign]
    return factory(spec, progress)


class Flood:
    """Text at a thousand pieces a second: the prompt says how many, and how many bytes each has."""

    def capacity(self) -> Capacity:
        """Enough for a crowd."""
        return Capacity(slots=64, context=4096)

    async def generate(self, task: dict[str, Any]) -> AsyncIterator[str]:
        """Pour, but not faster than a broker takes it in: the reader is what is slow."""
        pieces, size = (int(word) for word in str(task["prompt"]).split())
        text = "x" * size
        for _ in range(pieces):
            yield text
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        """Nothing to free."""


def flood(spec: EngineSpec, progress: Progress) -> StreamEngine:
    """Make one."""
    return Flood()
