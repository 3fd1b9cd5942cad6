"""Computes the steps of the `generate` engine with torch: one packed pass over all parts, one draw for all rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch

from ..sampling_torch import BatchSampler, report
from .attention import PoolAttention, Shape
from .engine import Drawn
from .schedule import Part, Step


class Decoder(Protocol):
    """A model that computes one step."""

    @property
    def shape(self) -> Shape:
        """What its pool looks like."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        ...

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, attention: PoolAttention, rows: torch.Tensor
    ) -> torch.Tensor:
        """Run `ids` [tokens] at `positions`; return float32 logits [len(rows), vocabulary] of some of them."""
        ...


class TorchRunner:
    """One model, its pool, and the steps under way: done when `launch` returns, since a CPU has nothing beside it."""

    def __init__(self, decoder: Decoder, kv_tokens: int, *, dtype: torch.dtype, device: torch.device | str) -> None:
        self._decoder = decoder
        self._device = device
        self._attention = PoolAttention(decoder.shape, kv_tokens, dtype=dtype, device=device)
        self._sampler = BatchSampler(decoder.vocabulary, device)
        self._done: deque[Drawn] = deque()

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._decoder.vocabulary

    @torch.inference_mode()
    def launch(self, step: Step) -> None:
        """Compute a step."""
        for copy in step.copies:
            self._attention.copy(copy)
        ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        last: list[int] = []
        for part in step.parts:
            assert part.ids is not None, "a step was planned on one that nobody has read"
            start = part.row.span.start
            ids += part.ids
            positions += range(part.begin, part.end)
            places += range(start + part.begin, start + part.end)
            if part.draws:
                last.append(len(ids) - 1)
        self._attention.prepare(step.parts, self._tensor(places))
        logits = self._decoder.forward(self._tensor(ids), self._tensor(positions), self._attention, self._tensor(last))
        self._done.append(self._draw(logits, step.drawing))

    def collect(self, timeout_s: float) -> Drawn | None:  # noqa: ARG002 - nothing is ever waited for
        """Return what the oldest step drew."""
        return self._done.popleft()

    def close(self) -> None:
        """Let go of the model and its pool."""
        self._done.clear()
        del self._decoder, self._attention

    def _draw(self, logits: torch.Tensor, parts: Sequence[Part]) -> Drawn:
        draws = [part.row.draw for part in parts]
        wanted = self._sampler.logprobs(logits, draws)
        tokens: list[int] = cast("Any", self._sampler.scores(logits, draws).argmax(dim=-1)).tolist()
        if not wanted:
            return Drawn(tokens)
        reports = [
            report(wanted[row], token, draws[row].sampling.logprobs or 0) if row in wanted else None
            for row, token in enumerate(tokens)
        ]
        return Drawn(tokens, reports)

    def _tensor(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
