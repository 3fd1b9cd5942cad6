"""What the device knows of each running sequence, so that a next step needs nothing from the host.

A sequence has a slot: one line of a table with its last token, its length, where it lies in the pool, and how its
tokens are drawn. Steps read and write that line by themselves; the host writes it once, when the sequence begins.
Penalties, biases and forbidden ids stand in tables with a column for each id, which few requests need.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from ..grammar import words_of as mask_words
from ..gumbel import words_of
from ..sampling_state import SamplingState
from .batch_sampler import token_mask
from .schedule import Sequence
from .transfers import Transfers

TOKEN, LENGTH, START, PROMPT, MIN_NEW, SEED_HIGH, SEED_LOW, TOP_K, COUNTS = range(9)
"""Columns of integers. LENGTH counts TOKEN, whose keys and values are still to be computed; PROMPT is what came with
the request and was not generated; COUNTS is 1 if what is generated is counted."""
TEMPERATURE, TOP_P, MIN_P, REPETITION, PRESENCE, FREQUENCY = range(9, 15)
"""Columns of float64; temperature 0 is greedy."""
COLUMNS: Final = 15
_IN_PROMPT, _STOPS = 1, 2


class SamplingMode(enum.Flag):
    """What drawing a batch takes beyond temperature and noise. A flag more changes nothing for slots that need less."""

    PLAIN = 0
    ADJUSTED = enum.auto()
    """Penalties, biases, forbidden ids."""
    CUT = enum.auto()
    """Top-k, top-p, min-p."""
    REPORTED = enum.auto()
    """Log probabilities."""


RECORDED: Final = (
    SamplingMode.PLAIN,
    SamplingMode.CUT,
    SamplingMode.CUT | SamplingMode.ADJUSTED,
    SamplingMode.CUT | SamplingMode.ADJUSTED | SamplingMode.REPORTED,
)
"""What is worth a graph, the commonest first: any mode is in one of them, and eight of each size would take twice the
time to load for a kernel that is spared now and then."""


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """What a decode step begins with, for each of its rows, and one `start` more (see `flash.Layout`)."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor


class SequenceTable:
    """The lines of `slots` sequences and, behind them, one for padding."""

    def __init__(self, slots: int, vocabulary: int, nowhere: int, transfers: Transfers) -> None:
        """Make room; `nowhere` is a token of the pool that belongs to nobody."""
        device = transfers.device
        self.padding = slots
        self.table = torch.zeros((slots + 1, COLUMNS), dtype=torch.int64, device=device)
        self.table[slots, LENGTH] = 1
        self.table[slots, START] = nowhere
        self.counts = torch.zeros((slots + 1, vocabulary), dtype=torch.int32, device=device)
        """How often each id was generated."""
        self.marks = torch.zeros((slots + 1, vocabulary), dtype=torch.uint8, device=device)
        """Which ids stand in the prompt (1), and which end the sequence (2)."""
        self.bias = torch.zeros((slots + 1, vocabulary), dtype=torch.float32, device=device)
        self._transfers = transfers
        self._of: dict[Sequence, int] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._shaped: set[int] = set()

    def __len__(self) -> int:
        return len(self._of)

    def release_ended(self) -> None:
        """Free the slots of sequences that have ended: steps under way may still use them, and come before the next."""
        for sequence in [sequence for sequence in self._of if sequence.has_ended]:
            self._free.append(self._of.pop(sequence))

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._of

    def __getitem__(self, sequence: Sequence) -> int:
        return self._of[sequence]

    def write(self, lengths: Mapping[Sequence, int]) -> None:
        """Write the lines of sequences as they are at some lengths: what is drawn next is the token behind that."""
        lines: list[int] = []
        for sequence, length in lengths.items():
            if sequence not in self._of:
                self._of[sequence] = self._free.pop()
            lines += _line(sequence, length)
            self._shape(self._of[sequence], sequence.sampling_state)
        self.shut_out(lengths)
        packed = self._transfers.up([*lines, *(self._of[sequence] for sequence in lengths)])
        slots = packed[len(lines) :]
        self.table.index_copy_(0, slots, packed[: len(lines)].view(-1, COLUMNS))

    def shut_out(self, sequences: Iterable[Sequence]) -> None:
        """Let sequences that keep to a grammar draw what may follow now: the rest gets a bias of minus infinity."""
        states = {self._of[each]: each.sampling_state for each in sequences}
        masks = {slot: state.matcher.mask for slot, state in states.items() if state.matcher is not None}
        if not masks:
            return
        words = self._transfers.up_words(mask_words(masks.values()))
        allowed = token_mask(words.view(len(masks), -1), self.bias.shape[1])
        self.bias.index_copy_(0, self._transfers.up([*masks]), torch.where(allowed, 0.0, -torch.inf))
        for slot in masks:
            self._add_bias(slot, states[slot])

    def inputs(self, slots: torch.Tensor) -> DecodeInputs:
        """Read the last token of each slot and where it goes: int64, starts and lengths int32."""
        lines = self.table[slots]
        positions = lines[:, LENGTH] - 1
        starts = lines[:, START].int()
        return DecodeInputs(
            token_ids=lines[:, TOKEN],
            positions=positions,
            places=lines[:, START] + positions,
            starts=torch.cat((starts, starts[:1])),
            lengths=lines[:, LENGTH].int(),
        )

    def advance(self, slots: torch.Tensor, tokens: torch.Tensor, mode: SamplingMode) -> None:
        """Append a token to each of the sequences in `slots`; padding stays as it is."""
        self.table[:, TOKEN].index_copy_(0, slots, tokens)
        self.table[:, LENGTH].index_add_(0, slots, (slots != self.padding).long())
        if SamplingMode.ADJUSTED in mode:
            once = self.table[slots, COUNTS].int()
            self.counts.view(-1).index_add_(0, slots * self.counts.shape[1] + tokens, once)

    def _shape(self, slot: int, state: SamplingState) -> None:
        """Fill the tables of a slot, if it needs them or whoever had it before did."""
        if slot in self._shaped:
            for table in (self.counts, self.marks, self.bias):
                table[slot].zero_()
            self._shaped.discard(slot)
        if not needs_tables(state):
            return
        self._shaped.add(slot)
        up = self._transfers.up
        vocabulary = self.counts.shape[1]
        self.marks[slot].index_fill_(0, up(sorted(state.prompt_ids)), _IN_PROMPT)
        stops = up([token_id for token_id in sorted(state.stop_ids) if token_id < vocabulary])
        self.marks[slot].index_copy_(0, stops, self.marks[slot][stops] | _STOPS)
        made = sorted(state.generated.items())
        self.counts[slot].index_copy_(0, up([token_id for token_id, _ in made]), up([count for _, count in made]).int())
        self._add_bias(slot, state)

    def _add_bias(self, slot: int, state: SamplingState) -> None:
        bias = sorted(state.sampling.logit_bias.items())
        if bias:
            up = self._transfers.up
            values = up([_bits(value) for _, value in bias]).view(torch.float64).float()
            self.bias[slot].index_add_(0, up([token_id for token_id, _ in bias]), values)

    def in_prompt(self, slots: torch.Tensor) -> torch.Tensor:
        """Return which ids stand in the prompts: bool [slots, vocabulary]."""
        return (self.marks[slots] & _IN_PROMPT).bool()

    def stops(self, slots: torch.Tensor) -> torch.Tensor:
        """Return which ids end the sequences: bool [slots, vocabulary]."""
        return (self.marks[slots] & _STOPS).bool()


def needs_tables(state: SamplingState) -> bool:
    """Whether how a request is drawn depends on single ids."""
    is_biased = bool(state.sampling.logit_bias) or state.matcher is not None
    return state.is_penalised or is_biased or state.generated_count < state.min_new_tokens


def mode_for(states: Iterable[SamplingState]) -> SamplingMode:
    """Return the least mode that does for all."""
    mode = SamplingMode.PLAIN
    for state in states:
        mode |= _mode(state)
    return mode


def _mode(state: SamplingState) -> SamplingMode:
    sampling, mode = state.sampling, SamplingMode.PLAIN
    if needs_tables(state):
        mode |= SamplingMode.ADJUSTED
    if not state.is_greedy and (sampling.top_k or sampling.top_p < 1.0 or sampling.min_p):
        mode |= SamplingMode.CUT
    if sampling.logprobs is not None:
        mode |= SamplingMode.REPORTED
    return mode


def _line(sequence: Sequence, length: int) -> list[int]:
    sampling = sequence.request.sampling
    high, low = words_of(sampling.seed)
    integers = [
        sequence.ids[length - 1],
        length,
        sequence.extent.start,
        len(sequence.request.prompt_ids),
        sequence.request.min_new_tokens,
        high,
        low,
        sampling.top_k,
        int(needs_tables(sequence.sampling_state)),
    ]
    temperature = 0.0 if sequence.sampling_state.is_greedy else sampling.temperature
    floats = (
        temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
    )
    return [*integers, *map(_bits, floats)]


def _bits(value: float) -> int:
    """View a float64 as the int64 of the same bits, so that one table holds both."""
    bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return bits
