"""Computes the steps of the `generate` engine with torch, one after the other: on a CPU, and on any device at need.

Usually a step is one packed pass over all its parts, and one draw for all rows. Where every bit counts it is several
passes of fixed size, the rest filled with padding, since how a matrix product rounds depends on how many rows it has.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from .attention import Attention, AttentionShape, PoolAttention
from .batch_sampler import BatchSampler, report
from .engine import Drawn
from .schedule import EngineStep, SchedulerLimits, SequenceStep


class Decoder(Protocol):
    """A model that computes one pass."""

    @property
    def shape(self) -> AttentionShape:
        """What its pool looks like."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        ...

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: Attention, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """Run `ids` [tokens] at `positions`; return logits [rows, vocabulary] of some of them, or of all."""
        ...


@dataclass(frozen=True, slots=True)
class Pass:
    """What goes through the model at once: some parts, filled up to `width` tokens (0 = not at all)."""

    parts: list[SequenceStep]
    width: int = 0

    def tokens(self, nowhere: int) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of all tokens, their positions, and their places in the pool; padding is stored `nowhere`."""
        ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        for part in self.parts:
            assert part.ids is not None, "a step was planned on a token that nobody has read"
            start = part.sequence.extent.start
            ids += part.ids
            positions += range(part.begin, part.end)
            places += range(start + part.begin, start + part.end)
        padding = max(0, self.width - len(ids))
        return ids + [0] * padding, positions + [0] * padding, places + [nowhere] * padding

    def bounds(self) -> list[int]:
        """Return where the tokens of each part begin, and where the last ones end."""
        return list(itertools.accumulate((part.end - part.begin for part in self.parts), initial=0))

    def last(self) -> list[int]:
        """Return which tokens the parts that draw end with."""
        return [end - 1 for part, end in zip(self.parts, self.bounds()[1:], strict=True) if part.draws]


def passes_of(step: EngineStep, limits: SchedulerLimits) -> Iterator[Pass]:
    """Split a step: one pass, or where every bit counts the running sequences in one, and each piece in its own."""
    if not limits.is_deterministic:
        yield Pass(step.parts)
        return
    running = [part for part in step.parts if not part.is_prompt]
    if running:
        yield Pass(running, limits.slots)
    for part in step.parts:
        if part.is_prompt:
            yield Pass([part], limits.chunk_tokens)


class TorchRunner:
    """One model, its pool, and the steps under way: done when `launch` returns, since a CPU has nothing beside it."""

    def __init__(
        self,
        decoder: Decoder,
        kv_tokens: int,
        limits: SchedulerLimits,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self._decoder = decoder
        self._limits = limits
        self._device = device
        self._nowhere = kv_tokens  # where padding is stored, behind everything else
        self._attention = PoolAttention(decoder.shape, kv_tokens + 1, dtype=dtype, device=device)
        self._sampler = BatchSampler(decoder.vocabulary, device)
        self._done: deque[Drawn] = deque()

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._decoder.vocabulary

    @torch.inference_mode()
    def launch(self, step: EngineStep) -> list[SequenceStep]:
        """Compute a step."""
        for copy in step.copies:
            self._attention.copy(copy)
        logits = [self._run(pass_) for pass_ in passes_of(step, self._limits)]
        self._done.append(self._draw(logits[0] if len(logits) == 1 else torch.cat(logits), step.drawing))
        return []

    def collect(self, timeout_s: float) -> Drawn | None:  # noqa: ARG002 - nothing is ever waited for
        """Return what the oldest step drew."""
        return self._done.popleft()

    def close(self) -> None:
        """Let go of the model and its pool."""
        self._done.clear()
        del self._decoder, self._attention

    def _run(self, pass_: Pass) -> torch.Tensor:
        """Compute a pass; return float32 logits [drawing parts, vocabulary]."""
        ids, positions, places = map(self._tensor, pass_.tokens(self._nowhere))
        last = self._tensor(pass_.last())
        self._attention.prepare(pass_.parts, places)
        is_single = pass_.width and not pass_.parts[0].is_prompt
        # The last product has a fixed size too: all rows of a pass of single tokens, the one that draws of a piece.
        logits = self._decoder.forward(ids, positions, self._attention, None if is_single else last)
        return (logits[last] if is_single else logits).float()

    def _draw(self, logits: torch.Tensor, parts: list[SequenceStep]) -> Drawn:
        states = [part.sequence.sampling_state for part in parts]
        wanted = self._sampler.logprobs(logits, states)
        tokens: list[int] = cast("Any", self._sampler.scores(logits, states).argmax(dim=-1)).tolist()
        if not wanted:
            return Drawn(tokens)
        reports = [
            report(wanted[row], token, states[row].sampling.logprobs or 0) if row in wanted else None
            for row, token in enumerate(tokens)
        ]
        return Drawn(tokens, reports)

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
