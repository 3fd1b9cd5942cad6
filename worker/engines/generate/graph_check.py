"""Before an engine serves: do recorded steps say what the same steps say when they are called?

A graph holds addresses and numbers as they were when it was recorded. One that reads the length of that moment, or what
has been freed since, is fast and wrong, and nothing fails. So made-up sequences are let go on by a token both ways, in
frames of some sizes with padding behind them, each of them somewhere else in a pool of random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

import torch

from ..base import SamplingParams, TokenRequest
from ..sampling_state import MAX_LOGPROBS
from .attention import Attention
from .cuda_graphs import DecodeFrame, DecodeGraphs, describe
from .kv_cache import Extent
from .schedule import Sequence
from .sequence_table import LENGTH, RECORDED, SamplingMode, SequenceTable
from .slot_sampler import Sample

_FIRST: Final = 3
"""Where the first sequence begins: nowhere near the beginning of the pool, which a graph without offsets would read."""
_MOST_TOKENS: Final = 700
"""Of a made-up sequence: more than a block or two of the attention, and little to fill."""
_ROUNDS: Final = 3
_MOST_OFF: Final = 0.25
"""How many tokens may differ: the same kernels may round in another order, where two tokens are about as likely."""
_TOLERANCE: Final = 0.05
"""Of log probabilities, by the largest of the reported ones: bfloat16 rounds to a 128th or less."""


def drop_wrong(steps: DecodeGraphs, slots: SequenceTable, attention: Attention, pool_tokens: int) -> list[str]:
    """Compare; drop each mode in which anything differs, in all sizes, and return the words for that."""
    wrong: dict[SamplingMode, str] = {}
    frames = _some(steps.frames)
    with _random_pool(attention, min(pool_tokens, _FIRST + _MOST_TOKENS + max(frame.size for frame in frames))) as size:
        for frame in frames:
            for mode in RECORDED:
                if mode in frame.graphs and mode not in wrong:
                    why = _differs(steps, slots, frame, mode, size)
                    if why:
                        wrong[mode] = f"{describe(frame, mode)}: recorded, {why}"
    for mode in wrong:
        steps.drop(mode)
    return list(wrong.values())


def _some(frames: list[DecodeFrame]) -> list[DecodeFrame]:
    """Take the smallest size, the largest and one between them."""
    sizes = sorted({frame.size for frame in frames})
    chosen = {sizes[0], sizes[len(sizes) // 2], sizes[-1]}
    return [frame for frame in frames if frame.size in chosen]


@contextmanager
def _random_pool(attention: Attention, tokens: int) -> Generator[int]:
    """Fill the beginning of the pool with numbers, for in zeros one place is like any other."""
    for layer in range(attention.shape.layers):
        for store in (attention.keys(layer), attention.values(layer)):
            generator = torch.Generator(device=store.device).manual_seed(layer)
            store[:tokens].normal_(generator=generator)
    try:
        yield tokens
    finally:
        for layer in range(attention.shape.layers):
            for store in (attention.keys(layer), attention.values(layer)):
                store[:tokens].zero_()


def _differs(steps: DecodeGraphs, slots: SequenceTable, frame: DecodeFrame, mode: SamplingMode, pool: int) -> str:
    """Let sequences go on both ways, several times; say what is not alike."""
    smaller = max((other.size for other in steps.frames if other.size < frame.size), default=0)
    count = max(smaller + 1, frame.size - 1)  # what the next smaller frame has no room for; the rest is padding
    longest = min(frame.most_keys, _MOST_TOKENS, pool - _FIRST - count)
    if longest < 1:
        return ""  # a pool of a few tokens has no room for what is made up
    off = 0
    for turn in range(_ROUNDS):
        lengths = _made_up(count, longest, mode, slots.counts.shape[1], turn)
        # Recorded first: what it does not store by itself must not be there already.
        replayed, left_by_replay = _go_on(steps.run, slots, lengths, frame.most_keys, mode)
        called, left_by_call = _go_on(steps.call, slots, lengths, frame.most_keys, mode)
        for sequence in lengths:
            sequence.has_ended = True
        slots.release_ended()
        off += int((replayed.tokens != called.tokens).sum())
        if not torch.equal(left_by_replay, left_by_call):
            return "it leaves other lengths than the same step when called"
        if called.report and not _are_alike(replayed, called):
            return "its log probabilities are not those of the same step when called"
    words = f"it draws {off} of {_ROUNDS * count} tokens otherwise than the same step when called"
    return words if off > _MOST_OFF * _ROUNDS * count else ""


def _made_up(count: int, longest: int, mode: SamplingMode, vocabulary: int, turn: int) -> dict[Sequence, int]:
    """Make sequences, each of one token again and again, that end in different places; return their lengths."""
    lengths: dict[Sequence, int] = {}
    for row in range(count):
        length = 1 + (longest - 1) * (row + turn + 1) // (count + _ROUNDS)
        ids = [(row * 7919 + turn * 31 + 11) % vocabulary] * length
        sampling = SamplingParams(
            temperature=float(row % 2),
            seed=1000 * turn + row,
            top_k=20 if SamplingMode.CUT in mode else 0,
            repetition_penalty=1.5 if SamplingMode.ADJUSTED in mode else 1.0,
            logprobs=MAX_LOGPROBS if SamplingMode.REPORTED in mode else None,
        )
        request = TokenRequest(ticket=row, prompt_ids=ids, max_new_tokens=1, sampling=sampling)
        sequence = Sequence.of(request, frozenset(), 1)
        sequence.extent = Extent(_FIRST + row, length)  # they overlap, and each stores into a place of its own
        lengths[sequence] = length
    return lengths


def _go_on(
    run: Callable[[list[int], int, SamplingMode], Sample],
    slots: SequenceTable,
    lengths: dict[Sequence, int],
    most_keys: int,
    mode: SamplingMode,
) -> tuple[Sample, torch.Tensor]:
    """Let the sequences, as they were, go on by a token; return what was drawn, and the lengths of all slots after."""
    slots.write(lengths)
    sample = run([slots[sequence] for sequence in lengths], most_keys, mode)
    kept = Sample(sample.tokens.clone(), tuple(tensor.clone() for tensor in sample.report))
    return kept, slots.table[:, LENGTH].clone()


def _are_alike(one: Sample, other: Sample) -> bool:
    """Compare log probabilities: of the likeliest tokens, whichever of equal ones they are, and of what was drawn."""
    own, best = (tensor.float() for tensor in one.report[:2])
    its_own, its_best = (tensor.float() for tensor in other.report[:2])
    most = _TOLERANCE * its_best.abs().amax(dim=1)
    is_same = one.tokens == other.tokens
    is_alike = ((own - its_own).abs() <= most) | ~is_same
    return bool(is_alike.all() and ((best - its_best).abs() <= most.unsqueeze(1)).all())  # a NaN is like nothing
