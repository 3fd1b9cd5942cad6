"""A decode step of every batch size as a CUDA graph: the device is given one thing to do instead of a thousand.

A graph has a fixed size, so there is one for each of some sizes, and a batch is filled up with padding. What a step
needs it reads from the slots; all that the host hands over is which slots, and only when that changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from .sequence_table import RECORDED, SamplingMode, SequenceTable
from .slot_sampler import Sample
from .transfers import Transfers

_SMALL: Final = (1, 2, 4, 8, 12, 16, 24)
_WARM_UPS: Final = 2
log = logging.getLogger(__name__)

Compute = Callable[[torch.Tensor, SamplingMode, int], Sample]
"""Draws a token for each slot (int64 [size]), none longer than so many tokens, and writes it to the slots."""


def sizes_for(rows: int) -> list[int]:
    """Return the sizes of graphs for up to `rows` sequences, largest first: what the largest one needs fits all."""
    sizes = {size for size in _SMALL if size < rows} | set(range(32, rows, 8)) | {rows}
    return sorted(sizes, reverse=True)


@dataclass(slots=True)
class _Frame:
    """What steps of one size and bound share: the slots they read, and which are written there."""

    slots: torch.Tensor
    most_keys: int
    members: Sequence[int] = ()
    graphs: dict[SamplingMode, tuple[torch.cuda.CUDAGraph, Sample]] = field(
        default_factory=dict[SamplingMode, tuple[torch.cuda.CUDAGraph, Sample]]
    )


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
        self._frames = {
            (size, most_keys): _Frame(
                torch.full((size,), slots.padding, dtype=torch.int64, device=transfers.device), most_keys
            )
            for size in sorted(key_bounds)
            for most_keys in sorted(key_bounds[size])
        }

    def run(self, members: Sequence[int], longest: int, mode: SamplingMode) -> Sample:
        """Let the sequences of these slots go on by a token, to at most `longest` tokens.

        What is returned is overwritten by the next step.
        """
        size = next(size for size, _ in self._frames if size >= len(members))
        frame = next(
            frame for (each, most_keys), frame in self._frames.items() if each == size and most_keys >= longest
        )
        if frame.members != members:
            frame.slots.copy_(self._transfers.up([*members, *[self._padding] * (size - len(members))]))
            frame.members = list(members)
        captured = next((graph for kind, graph in frame.graphs.items() if mode in kind), None)
        if captured is None:
            sample = self._compute(frame.slots, mode, frame.most_keys)
        else:
            graph, sample = captured
            graph.replay()
        return sample.first(len(members))

    def capture(self, progress: Callable[[float], None]) -> None:
        """Record a graph for each size, of padding alone; without one a size is computed call by call.

        Raises whatever a model does that cannot be recorded; nothing is recorded then.
        """
        pool = torch.cuda.graph_pool_handle()
        todo = [(frame, mode) for frame in reversed(self._frames.values()) for mode in RECORDED]
        try:
            for done, (frame, mode) in enumerate(todo):
                progress(100 * done / len(todo))
                for _ in range(_WARM_UPS):
                    self._compute(frame.slots, mode, frame.most_keys)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, stream=self._transfers.compute):
                    sample = self._compute(frame.slots, mode, frame.most_keys)
                frame.graphs[mode] = (graph, sample)
        except BaseException:
            for frame in self._frames.values():
                frame.graphs.clear()
            raise
        log.info("%d decode steps are recorded as graphs", len(todo))
