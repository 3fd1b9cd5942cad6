"""How tokens are drawn with Triton's kernels: two launches, and three more where scores are adjusted or cut.

The choices are those of `slot_sampler.py`; what the kernels do is said in `sampling_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton

from ..base import SamplingParams, TokenRequest
from . import sampling_kernels as untyped_kernels
from . import schedule
from .sequence_table import RECORDED, SamplingMode, SequenceTable
from .slot_sampler import SlotSampler
from .transfers import Transfers

kernels: Any = untyped_kernels
_BLOCK: Final = 1024
_ROW_BLOCK: Final = 4096
_ROW_REGISTERS: Final = 128
"""What a thread may have where there are 512 of them: left alone the compiler keeps to 64, and spills."""
_LIST_BLOCK: Final = 1024
"""Of the scores of one bin, which are a few hundred of a model's 128,256."""
_ROW_WARPS: Final = 16
"""One program goes through a whole row: as many loads at a time as a processor bears."""


class KernelSampler(SlotSampler):
    """Draws for the sequences of some slots."""

    def __init__(self, slots: SequenceTable) -> None:
        super().__init__(slots)
        rows, device = len(slots.table), slots.table.device
        self._counts = torch.zeros((rows, untyped_kernels.BINS), dtype=torch.int32, device=device)
        self._masses = torch.zeros((rows, untyped_kernels.BINS), dtype=torch.int64, device=device)
        """Bins of scores, empty between two draws."""
        self._vocabulary = slots.counts.shape[1]
        self._blocks = triton.cdiv(self._vocabulary, _BLOCK)
        self._over_blocks = triton.next_power_of_2(self._blocks)

    def _draw(self, slots: torch.Tensor, logits: torch.Tensor, mode: SamplingMode) -> torch.Tensor:
        rows = len(slots)
        tokens = torch.empty_like(slots)
        if not rows:
            return tokens
        assert rows <= len(self._counts), "more rows than slots"
        is_cut = SamplingMode.CUT in mode
        best = torch.empty((rows, self._blocks), dtype=torch.float32, device=slots.device)
        best_ids = torch.empty((rows, self._blocks), dtype=torch.int32, device=slots.device)
        scores, lowest = logits, best
        if is_cut or SamplingMode.ADJUSTED in mode:
            scores = self._shape(slots, logits, best, mode)
        if is_cut:
            lowest = self._threshold(slots, scores, best)
        kernels.draw[(rows, self._blocks)](
            slots, self._slots.table, scores, lowest, self._noise.words, best, best_ids, self._vocabulary,
            self._blocks, IS_CUT=is_cut, BLOCK=_BLOCK,
        )  # fmt: skip
        kernels.finish[(rows,)](
            slots, self._slots.table, self._slots.counts, best, best_ids, tokens, self._slots.padding,
            self._vocabulary, self._blocks, IS_COUNTED=SamplingMode.ADJUSTED in mode, BLOCKS=self._over_blocks,
            num_warps=1,
        )  # fmt: skip
        return tokens

    def _shape(self, slots: torch.Tensor, logits: torch.Tensor, best: torch.Tensor, mode: SamplingMode) -> torch.Tensor:
        """Return the scores that are drawn from, float32; the best ones of each block are written."""
        scores = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        kernels.shape[best.shape](
            slots, self._slots.table, logits, self._slots.counts, self._slots.marks, self._slots.bias, scores, best,
            self._vocabulary, self._blocks, IS_ADJUSTED=SamplingMode.ADJUSTED in mode,
            IS_CUT=SamplingMode.CUT in mode, BLOCK=_BLOCK,
            enable_fp_fusion=False,  # one rounding where torch has two would give other scores
        )  # fmt: skip
        return scores

    def _threshold(self, slots: torch.Tensor, scores: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """Return the lowest score that each row keeps."""
        lowest = torch.empty(len(slots), dtype=torch.float32, device=slots.device)
        keys = torch.empty(scores.shape, dtype=torch.int32, device=slots.device)
        shared = (self._counts, self._masses)
        kernels.histogram[best.shape](
            slots, self._slots.table, scores, best, *shared, self._vocabulary, self._blocks,
            BLOCKS=self._over_blocks, BLOCK=_BLOCK,
        )  # fmt: skip
        kernels.threshold[(len(slots),)](
            slots, self._slots.table, scores, best, *shared, keys, lowest, self._vocabulary, self._blocks,
            BLOCKS=self._over_blocks, BLOCK=_ROW_BLOCK, LIST=_LIST_BLOCK, num_warps=_ROW_WARPS, maxnreg=_ROW_REGISTERS,
        )  # fmt: skip
        return lowest

    def scores(self, slots: torch.Tensor, logits: torch.Tensor, mode: SamplingMode) -> torch.Tensor:
        """See `SlotSampler`: for looking in, since `draw` leaves out by itself what is below a row's lowest."""
        best = torch.empty((len(slots), self._blocks), dtype=torch.float32, device=slots.device)
        mode |= SamplingMode.CUT
        scores = self._shape(slots, logits, best, mode)
        return scores.masked_fill(scores < self._threshold(slots, scores, best).unsqueeze(1), -torch.inf)

    def hashes(self, slots: torch.Tensor) -> torch.Tensor:
        """See `SlotSampler`."""
        out = torch.empty((len(slots), self._vocabulary), dtype=torch.int32, device=slots.device)
        kernels.hash_rows[(len(slots), self._blocks)](
            slots, self._slots.table, self._noise.words, out, self._vocabulary, BLOCK=_BLOCK
        )
        return out


_TRIED: Final = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, seed=2**63 - 1),
    SamplingParams(temperature=1.5, seed=2**32 - 1, top_k=40),
    SamplingParams(temperature=0.1, seed=5, top_k=200, top_p=0.95),  # fewer than 200 of them are near the best
    SamplingParams(temperature=1.0, seed=77, top_p=0.9, min_p=0.001),
    SamplingParams(temperature=1.2, seed=3, top_k=500, top_p=0.5, repetition_penalty=1.3, logit_bias={7: 4.0}),
)


def differences(dtype: torch.dtype, device: torch.device | str) -> dict[str, float]:
    """Return how many hashes and tokens are others than those of plain torch."""
    vocabulary, transfers = 2100, Transfers(device)
    transfers.settle()
    with transfers.computing():
        ours, plain = (kind(table_of(_TRIED, vocabulary, transfers)) for kind in (KernelSampler, SlotSampler))
        slots = torch.arange(len(_TRIED), device=device)
        hashes = int((ours.hashes(slots) != plain.hashes(slots)).sum())
        generator = torch.Generator(device=device).manual_seed(2)
        tokens = 0
        for mode in RECORDED[:3]:
            logits = 3 * torch.randn((len(_TRIED), vocabulary), generator=generator, device=device)
            drawn, right = (one.draw(slots, logits.to(dtype), mode).tokens for one in (ours, plain))
            tokens += int((drawn != right).sum())
    return {"hash": float(hashes), "draw": float(tokens)}


def table_of(samplings: Sequence[SamplingParams], vocabulary: int, transfers: Transfers) -> SequenceTable:
    """Return a table with a sequence for each of some ways to draw, in this order."""
    table = SequenceTable(len(samplings), vocabulary, 0, transfers)
    for number, sampling in enumerate(samplings):
        prompt = [number % vocabulary, (number + 7) % vocabulary]
        request = TokenRequest(ticket=number, prompt_ids=prompt, max_new_tokens=100, sampling=sampling)
        sequence = schedule.Sequence.of(request, frozenset(), 100)
        table.write({sequence: len(prompt)})
    return table
