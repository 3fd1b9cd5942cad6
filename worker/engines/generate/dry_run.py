"""Before the pool is made: one piece of prompts and one token for everybody, as large as they will ever come.

It tells what a step takes beside weights and pool, so that the pool can have the rest: guessed too low a long prompt
fails later, guessed too high a tenth of the card lies idle. It tells how long a piece takes. And cuBLAS loads its
kernels when they are first used, which is better done here than in somebody's request.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from ..base import EngineFatalError, SamplingParams, TokenEvent, TokenRequest
from ..sampling_state import MAX_LOGPROBS
from .device_runner import DeviceRunner
from .engine import GenerateEngine
from .gpu_memory import GpuMemory
from .schedule import SchedulerLimits

_LEAST_TOKENS: Final = 256
_NEW: Final = 2
_ALL: Final = SamplingParams(
    temperature=1.0, top_k=50, top_p=0.9, repetition_penalty=1.1, logprobs=MAX_LOGPROBS, logit_bias={0: 1.0}
)
"""Everything that drawing may take."""
log = logging.getLogger(__name__)

MakeRunner = Callable[[int, SchedulerLimits], DeviceRunner]
"""Make a runner with a pool of so many tokens."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What was seen: a piece of `tokens` took `seconds`, and steps took `most_bytes` beside weights and pool.

    `frames`: decode steps are made for so many sizes and lengths.
    """

    tokens: int
    seconds: float
    most_bytes: int
    frames: int


def dry_run(make: MakeRunner, limits: SchedulerLimits, memory: GpuMemory) -> DryRun:
    """Compute the largest piece; half of it if there is no memory for it, and so on. Raises ValueError in the end."""
    tokens = limits.idle_chunk_tokens
    while True:
        found = _try(make, _limits(limits, tokens), tokens, memory)
        memory.release()
        if found is not None:
            return found
        if tokens // 2 < _LEAST_TOKENS:
            raise ValueError(f"there is no memory to compute {tokens} tokens of a prompt; use a smaller model or type")
        tokens //= 2
        log.warning("there is no memory to compute %d tokens of prompts at once; trying %d", 2 * tokens, tokens)


def _limits(limits: SchedulerLimits, tokens: int) -> SchedulerLimits:
    chunk = limits.chunk_tokens if limits.is_deterministic else tokens
    return dataclasses.replace(limits, chunk_tokens=chunk, idle_chunk_tokens=tokens, depth=1, may_reuse=False)


def _try(make: MakeRunner, limits: SchedulerLimits, tokens: int, memory: GpuMemory) -> DryRun | None:
    """Run it twice: the first time loads kernels. None if there is no memory for it."""
    rows = min(limits.slots, tokens)
    length = max(1, min(tokens // rows, limits.context - _NEW - 1))
    try:
        runner = make(rows * (length + _NEW), limits)
        engine = GenerateEngine(runner, kv_tokens=rows * (length + _NEW), limits=limits)
        try:
            memory.watch()
            seconds = [_compute(engine, rows, length) for _ in range(2)]
            if runner.passes_without_memory:  # it has helped itself by shorter ones
                return None
            return DryRun(tokens, seconds[1], memory.most_bytes(), runner.frames)
        finally:
            engine.close()
    except torch.OutOfMemoryError:
        return None
    except EngineFatalError as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            return None
        raise


def _compute(engine: GenerateEngine, rows: int, length: int) -> float:
    """Let so many prompts draw two tokens each; return the seconds until the first ones are there."""
    began_at, first_at, over = time.monotonic(), 0.0, 0
    for row in range(rows):
        ids = [(row * 7919 + at * 31 + 11) % engine.runner.vocabulary for at in range(length)]
        engine.submit(TokenRequest(ticket=row, prompt_ids=ids, max_new_tokens=_NEW, ignore_eos=True, sampling=_ALL))
    while over < rows:
        events = engine.poll(0.1)
        first_at = first_at or (time.monotonic() if events else 0.0)
        over += sum(_is_over(event) for event in events)
    return first_at - began_at


def _is_over(event: TokenEvent) -> bool:
    if event.error is not None:
        raise torch.OutOfMemoryError(event.error)
    return event.finish_reason is not None
