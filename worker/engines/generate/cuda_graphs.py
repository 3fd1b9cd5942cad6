"""A decode step of every batch size as a CUDA graph: the device is given one thing to do instead of a thousand.

A graph has a fixed size, so there is one for each of some sizes, and a batch is filled up with padding. What a step
needs it reads from the slots; all that the host hands over is which slots, and only when that changes.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

from .sequence_table import RECORDED, SamplingMode, SequenceTable
from .slot_sampler import Sample
from .transfers import Transfers

_SMALL: Final = (1, 2, 4, 8, 12, 16, 24)
_WARM_UPS: Final = 2
_MOST_WORDS: Final = 160
_cuda: Any = torch.cuda  # its classes are not typed
log = logging.getLogger(__name__)

Compute = Callable[[torch.Tensor, SamplingMode, int], Sample]
"""Draws a token for each slot (int64 [size]), none longer than so many tokens, and writes it to the slots."""


def sizes_for(rows: int) -> list[int]:
    """Return the sizes of graphs for up to `rows` sequences, largest first: what the largest one needs fits all.

    The larger a step, the less a row of padding adds to it, and each size costs time and memory while loading.
    """
    sizes = {*_SMALL, *range(32, 64, 8), *range(64, 128, 16), *range(128, rows, 32)}
    return sorted({size for size in sizes if size < rows} | {rows}, reverse=True)


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A step that was recorded: `replay` computes it anew, and overwrites `sample`."""

    replay: Callable[[], None]
    sample: Sample


class GraphRecorder(Protocol):
    """Records what is computed."""

    def record(self, compute: Callable[[], Sample]) -> RecordedStep:
        """Record one call. Raises what it does that cannot be recorded."""
        ...


class CudaRecorder:
    """Records CUDA graphs on the computing stream; all share the memory of one pool, for one runs at a time."""

    def __init__(self, transfers: Transfers) -> None:
        self._stream = transfers.compute
        self._pool = _cuda.graph_pool_handle()

    def record(self, compute: Callable[[], Sample]) -> RecordedStep:
        """See `GraphRecorder`."""
        graph = _cuda.CUDAGraph()
        try:
            with _cuda.graph(graph, pool=self._pool, stream=self._stream):
                sample = compute()
        except BaseException:
            self._pool = _cuda.graph_pool_handle()  # the allocator may take this one for being recorded into for ever
            raise
        return RecordedStep(graph.replay, sample)


@dataclass(slots=True)
class DecodeFrame:
    """What steps of one size and bound share: the slots they read, and which are written there."""

    slots: torch.Tensor
    most_keys: int
    members: Sequence[int] = ()
    graphs: dict[SamplingMode, RecordedStep] = field(default_factory=dict[SamplingMode, RecordedStep])

    @property
    def size(self) -> int:
        """How many sequences."""
        return len(self.slots)


class DecodeGraphs:
    """Runs `compute` for a batch of any size, by graphs once they are captured."""

    def __init__(
        self,
        compute: Compute,
        slots: SequenceTable,
        transfers: Transfers,
        key_bounds: Mapping[int, Sequence[int]],
    ) -> None:
        """`key_bounds`: for each size the lengths that its graphs are made for; the longest sequence decides."""
        self._compute = compute
        self._padding = slots.padding
        self._transfers = transfers
        self.frames = [
            DecodeFrame(torch.full((size,), slots.padding, dtype=torch.int64, device=transfers.device), most_keys)
            for size in sorted(key_bounds)
            for most_keys in sorted(key_bounds[size])
        ]
        """By size and bound, the smallest first."""

    @property
    def recorded(self) -> int:
        """How many graphs there are."""
        return sum(len(frame.graphs) for frame in self.frames)

    def run(self, members: Sequence[int], longest: int, mode: SamplingMode) -> Sample:
        """Let the sequences of these slots go on by a token, to at most `longest` tokens.

        What is returned is overwritten by the next step.
        """
        frame = self._seat(members, longest)
        captured = next((step for kind, step in frame.graphs.items() if mode in kind), None)
        if captured is None:
            return self._compute(frame.slots, mode, frame.most_keys).first(len(members))
        captured.replay()
        return captured.sample.first(len(members))

    def call(self, members: Sequence[int], longest: int, mode: SamplingMode) -> Sample:
        """Do the same call by call, recorded or not."""
        frame = self._seat(members, longest)
        return self._compute(frame.slots, mode, frame.most_keys).first(len(members))

    def _seat(self, members: Sequence[int], longest: int) -> DecodeFrame:
        """Write a batch into the smallest frame that holds it, unless it stands there."""
        size = next(frame.size for frame in self.frames if frame.size >= len(members))
        frame = next(frame for frame in self.frames if frame.size == size and frame.most_keys >= longest)
        if frame.members != members:
            frame.slots.copy_(self._transfers.up([*members, *[self._padding] * (size - len(members))]))
            frame.members = list(members)
        return frame

    def capture(self, recorder: GraphRecorder, progress: Callable[[float], None]) -> Iterator[str]:
        """Record a graph for each size, of padding alone; without one a size is computed call by call.

        The commonest mode comes first, in all sizes: should memory run out, it is there. Yields what could not be
        recorded, and why.
        """
        todo = [(frame, mode) for mode in RECORDED for frame in reversed(self.frames)]
        with _no_collection():
            for done, (frame, mode) in enumerate(todo):
                progress(100 * done / len(todo))
                failed = self._record(recorder, frame, mode)
                if failed is None:
                    continue
                words = " ".join(f"{type(failed).__name__}: {failed}".split())[:_MOST_WORDS]
                yield f"{describe(frame, mode)}: {words}"
                if isinstance(failed, torch.OutOfMemoryError):
                    break
        log.info("%d of %d decode steps are recorded as graphs", self.recorded, len(todo))

    def _record(self, recorder: GraphRecorder, frame: DecodeFrame, mode: SamplingMode) -> Exception | None:
        """Record a step; return what it does that cannot be recorded."""

        def compute() -> Sample:
            return self._compute(frame.slots, mode, frame.most_keys)

        try:
            for _ in range(_WARM_UPS):
                compute()
            frame.graphs[mode] = recorder.record(compute)
        except Exception as error:  # noqa: BLE001 - whatever it is: a step that cannot be recorded can still be called
            # A capture that was broken off raises a second time as it ends, with less to say.
            first = error.__context__ if isinstance(error.__context__, Exception) else error
            first.__traceback__ = first.__context__ = first.__cause__ = None  # they hold what the step had got
            return first
        return None

    def drop(self, mode: SamplingMode) -> None:
        """Forget the graphs of a mode: its steps are computed call by call."""
        for frame in self.frames:
            frame.graphs.pop(mode, None)


def describe(frame: DecodeFrame, mode: SamplingMode) -> str:
    """Name a recorded step."""
    flags = "+".join(str(flag.name).lower() for flag in mode) or "plain"
    return f"batch {frame.size}, {flags}, up to {frame.most_keys} tokens"


@contextmanager
def _no_collection() -> Generator[None]:
    """Let nothing be collected meanwhile: what frees memory of the device breaks a capture that is under way."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
