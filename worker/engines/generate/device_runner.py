"""Computes the steps of the `generate` engine on a GPU, one step ahead of whoever reads the results.

What decides about the next token lies on the device (`sequence_table.py`), so step N + 1 is launched before N is read.
Running sequences go first, as one recorded graph; then the pieces of prompts, packed into one pass, whose last tokens
draw too. All of it also runs on a CPU, call by call, which is how it is tested.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from . import graph_check
from .cuda_graphs import CudaRecorder, DecodeGraphs, GraphRecorder, sizes_for
from .engine import Drawn
from .flash import FlashAttention, Layout, Operation, flash, key_bounds
from .ops import TorchOps
from .schedule import EngineStep, SchedulerLimits, Sequence, SequenceStep
from .sequence_table import SamplingMode, SequenceTable, mode_for
from .slot_sampler import Sample
from .torch_runner import Decoder, Pass, passes_of
from .transfers import Arrival, Transfers


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A step that is being computed, and which of what it draws is to be reported: index, how many likely ones."""

    arrival: Arrival
    reported: list[tuple[int, int]]


class DeviceRunner:
    """One model, its pool, its slots, and the steps under way."""

    def __init__(
        self,
        decoder: Decoder,
        kv_tokens: int,
        limits: SchedulerLimits,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        operations: TorchOps | None = None,
        operation: Operation = flash,
    ) -> None:
        self._decoder = decoder
        self._limits = limits
        self._transfers = Transfers(device)
        self._nowhere = kv_tokens  # where padding is stored, behind everything else
        self._attention = FlashAttention(decoder.shape, kv_tokens + 1, dtype=dtype, device=device, operation=operation)
        self._slots = SequenceTable(limits.slots, decoder.vocabulary, self._nowhere, self._transfers)
        self._operations = operations or TorchOps()
        self._sampler = self._operations.sampler(self._slots)
        sizes = [limits.slots] if limits.is_deterministic else sizes_for(limits.slots)
        bounds = {size: self._key_bounds(size, operation) for size in sizes}
        self._steps = DecodeGraphs(self._decode, self._slots, self._transfers, bounds)
        self._under_way: deque[_UnderWay] = deque()
        self.passes_without_memory = 0
        """How often pieces of prompts had to be computed in smaller company, or not at all."""
        self._bounds = torch.arange(limits.slots + 1, dtype=torch.int32, device=device)
        self._transfers.settle()

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self._decoder.vocabulary

    @property
    def recorded(self) -> int:
        """How many graphs of decode steps there are."""
        return self._steps.recorded

    @property
    def frames(self) -> int:
        """For how many sizes and lengths there are decode steps; each is recorded in every mode."""
        return len(self._steps.frames)

    def _key_bounds(self, rows: int, operation: Operation) -> list[int]:
        """Return the lengths that steps are made for; where every bit counts, one: neighbours must not choose it."""
        context = self._limits.context
        if self._limits.is_deterministic:
            return [context]
        return key_bounds(operation, rows, self._decoder.shape.kv_heads, context, self._transfers.device)

    @torch.inference_mode()
    def record(self, progress: Callable[[float], None], recorder: GraphRecorder | None = None) -> list[str]:
        """Record the decode steps as graphs; return what of them is computed call by call, and why.

        What was recorded has to say what calls say, or it goes.
        """
        with self._transfers.computing():
            lost = list(self._steps.capture(recorder or CudaRecorder(self._transfers), progress))
            lost += graph_check.drop_wrong(self._steps, self._slots, self._attention, self._nowhere)
        return lost

    # --- a step ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def launch(self, step: EngineStep) -> list[SequenceStep]:
        """Begin a step, and return the pieces that there was no memory for."""
        reported = _mode(step.drawing) & SamplingMode.REPORTED  # all of a step or none: what comes back is one table
        lost: list[SequenceStep] = []
        with self._transfers.computing():
            self._slots.release_ended()
            for copy in step.copies:
                self._attention.copy(copy)
            self._open(step)
            running = [part for part in step.parts if not part.is_prompt]
            samples = [self._run(running, _mode(running) | reported)] if running else []
            for pass_ in passes_of(EngineStep([], [part for part in step.parts if part.is_prompt]), self._limits):
                samples += self._compute_pieces(pass_, _mode(pass_.parts) | reported, lost)
            drawn = [sample for sample in samples if len(sample.tokens)]
            sample = Sample.of_all(drawn) if drawn else Sample(self._bounds[:0])
            arrival = self._transfers.down(sample.tokens, *sample.report)
        drawing = [part.sequence.sampling_state.sampling for part in step.drawing if part not in lost]
        asked = [(row, sampling.logprobs) for row, sampling in enumerate(drawing) if sampling.logprobs is not None]
        self._under_way.append(_UnderWay(arrival, asked))
        return lost

    def collect(self, timeout_s: float) -> Drawn | None:
        """Return what the oldest step drew."""
        first = self._under_way[0]
        if not first.arrival.wait(timeout_s):
            return None
        self._under_way.popleft()
        tokens, *report = first.arrival.lists()
        if not first.reported:
            return Drawn(tokens)
        own, best, ids = report
        reports: list[dict[int, float] | None] = [None] * len(tokens)
        for row, count in first.reported:
            likeliest = dict(zip(ids[row][:count], best[row][:count], strict=True))
            reports[row] = {tokens[row]: own[row], **likeliest}
        return Drawn(tokens, reports)

    def close(self) -> None:
        """Let go of the model and everything else on the device, once it uses them no more."""
        self._under_way.clear()
        try:
            self._transfers.settle()
        finally:
            del self._steps, self._sampler, self._slots, self._attention, self._decoder

    # --- running sequences -------------------------------------------------------------------------------------------

    def _open(self, step: EngineStep) -> None:
        """Write the slots of sequences that begin, and of those that are fed what they had made elsewhere."""
        fresh: dict[Sequence, int] = {}
        for part in step.parts:
            if not part.is_prompt and part.end <= part.sequence.given:
                fresh[part.sequence] = part.end
            elif part.sequence not in self._slots:
                fresh[part.sequence] = part.sequence.given
        if fresh:
            self._slots.write(fresh)
        self._slots.shut_out(part.sequence for part in step.drawing if part.sequence not in fresh)

    def _run(self, parts: list[SequenceStep], mode: SamplingMode) -> Sample:
        """Let running sequences go on; return what those drew that draw, which stand in front."""
        longest = max(part.end for part in parts)
        sample = self._steps.run([self._slots[part.sequence] for part in parts], longest, mode)
        return sample.first(sum(part.draws for part in parts))

    def _decode(self, slots: torch.Tensor, mode: SamplingMode, most_keys: int) -> Sample:
        """Compute one token of each slot from what the slots know. Nothing here may ask the device for a number."""
        inputs = self._operations.inputs(self._slots, slots)
        layout = Layout(
            places=inputs.places,
            bounds=self._bounds[: len(slots) + 1],
            starts=inputs.starts,
            lengths=inputs.lengths,
            most_queries=1,
            most_keys=most_keys,
        )
        self._attention.prepare(layout)
        logits = self._decoder.forward(inputs.token_ids, inputs.positions, self._attention, None)
        return self._sampler.draw(slots, logits, mode)

    # --- pieces of prompts -------------------------------------------------------------------------------------------

    def _compute_pieces(self, pass_: Pass, mode: SamplingMode, lost: list[SequenceStep]) -> list[Sample]:
        """Compute pieces in one pass; at need one by one; and those that do not even fit alone are lost."""
        if not pass_.parts:
            return []
        with contextlib.suppress(torch.OutOfMemoryError):
            return [self._prefill(pass_, mode)]
        self.passes_without_memory += 1
        torch.cuda.empty_cache()  # here, where the error no longer holds on to what the pass had got
        if len(pass_.parts) == 1:
            lost += pass_.parts
            return []
        # Some may have drawn already, and their slots moved on, before there was no memory for what is reported of it.
        self._slots.write({part.sequence: part.sequence.given for part in pass_.parts if part.draws})
        alone = [Pass([part], pass_.width) for part in pass_.parts]
        return [sample for each in alone for sample in self._compute_pieces(each, mode, lost)]

    def _prefill(self, pass_: Pass, mode: SamplingMode) -> Sample:
        """Compute pieces; return what those drew that draw."""
        bounds = pass_.bounds()
        starts = [part.sequence.extent.start for part in pass_.parts]
        lengths = [part.end for part in pass_.parts]
        if pass_.width:  # padding is a sequence of its own, which sees one token of nobody
            bounds.append(pass_.width)
            starts.append(self._nowhere)
            lengths.append(1)
        slots = [self._slots[part.sequence] for part in pass_.parts if part.draws]
        pieces = (*pass_.tokens(self._nowhere), pass_.last(), slots, bounds, [*starts, 0], lengths)
        packed: Any = self._transfers.up([value for piece in pieces for value in piece])
        there: tuple[torch.Tensor, ...] = packed.split([len(piece) for piece in pieces])
        self._attention.prepare(
            Layout(
                places=there[2],
                bounds=there[5].int(),
                starts=there[6].int(),
                lengths=there[7].int(),
                most_queries=max(end - begin for begin, end in itertools.pairwise(bounds)),
                most_keys=self._limits.context if pass_.width else max(lengths),
            )
        )
        logits = self._decoder.forward(there[0], there[1], self._attention, there[3])
        if not slots:  # the middle of prompts: no next token
            return Sample(there[4])
        return self._sampler.draw(there[4], logits, mode)


def _mode(parts: Iterable[SequenceStep]) -> SamplingMode:
    """Return what drawing takes for those that draw, so that nobody pays for whom is computed in another pass."""
    return mode_for(part.sequence.sampling_state for part in parts if part.draws)
