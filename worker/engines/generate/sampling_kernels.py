# pyright: basic
"""How tokens are drawn, in Triton: the choices of `slot_sampler.py`, called by `kernel_sampler.py`. Nothing is typed.

What top-k and top-p keep of a row is what lies at or above one score, which is found by selection, not by sorting.
First a histogram of 2,048 bins over how far a score lies below the best one of its row, 1/64 a bin. It holds counts for
top-k and masses for top-p, and all blocks of a vocabulary fill it at once. (A radix select would take the highest bits
of a float, but the scores of a row share a dozen of their values: a hundred thousand additions to the same address wait
for each other.) Then one program a row takes the bin in which the score lies, a few hundred scores, and halves
the range of its 32 bits 32 times. Rows in which one bin holds nearly everything are as right, only slower.

The last bin is that of scores 32 or more below the best, which at a low temperature are nearly all of a vocabulary. It
is neither filled nor searched, and where a limit lies in it all of it stays: noise lies between -2.82 and 22.9
(`gumbel.py`), so none of these is ever drawn, and their masses are zero.

Masses are added as integers, multiples of 2**-36 of the likeliest token's: an order of additions that changes from run
to run, as it does with atomic ones, then changes no bit of the sum.
"""

from __future__ import annotations

from typing import Final

import triton
import triton.language as tl

from ..murmur3 import C1, C2, LENGTH_BYTES, MIX1, MIX2, ROUND_ADD
from . import sequence_table as s

BINS: Final = 2048
_ADD: Final = tl.constexpr(ROUND_ADD)
_C1: Final = tl.constexpr(C1)
_C2: Final = tl.constexpr(C2)
_MIX1: Final = tl.constexpr(MIX1)
_MIX2: Final = tl.constexpr(MIX2)
_LENGTH_BYTES: Final = tl.constexpr(LENGTH_BYTES)
_SCALE: Final = tl.constexpr(2.0**-32)
_BELOW_ONE: Final = tl.constexpr(1.0 - 2.0**-24)
_BINS: Final = tl.constexpr(BINS)
_BINS_PER_UNIT: Final = tl.constexpr(64.0)
_UNIT_MASS: Final = tl.constexpr(2.0**36)

_COLUMNS: Final = tl.constexpr(s.COLUMNS)
_TOKEN: Final = tl.constexpr(s.TOKEN)
_LENGTH: Final = tl.constexpr(s.LENGTH)
_PROMPT: Final = tl.constexpr(s.PROMPT)
_MIN_NEW: Final = tl.constexpr(s.MIN_NEW)
_SEED_HIGH: Final = tl.constexpr(s.SEED_HIGH)
_SEED_LOW: Final = tl.constexpr(s.SEED_LOW)
_TOP_K: Final = tl.constexpr(s.TOP_K)
_COUNTS: Final = tl.constexpr(s.COUNTS)
_TEMPERATURE: Final = tl.constexpr(s.TEMPERATURE)
_TOP_P: Final = tl.constexpr(s.TOP_P)
_MIN_P: Final = tl.constexpr(s.MIN_P)
_REPETITION: Final = tl.constexpr(s.REPETITION)
_PRESENCE: Final = tl.constexpr(s.PRESENCE)
_FREQUENCY: Final = tl.constexpr(s.FREQUENCY)


@triton.jit
def _load_scores(row, ids, is_in):
    """Load scores as float32. What is no number is never drawn: its index might be one that is no token either."""
    score = tl.load(row + ids, mask=is_in, other=float("-inf")).to(tl.float32)
    return tl.where(score >= float("-inf"), score, float("-inf"))


@triton.jit
def _real(line, COLUMN: tl.constexpr):
    return tl.load(line + COLUMN).to(tl.float64, bitcast=True).to(tl.float32)


# --- penalties, biases, temperature ----------------------------------------------------------------------------------


@triton.jit
def _adjusted(score, line, counts, marks, bias, is_in):
    repetition = _real(line, _REPETITION)
    count = tl.load(counts, mask=is_in, other=0)
    mark = tl.load(marks, mask=is_in, other=0)
    is_seen = (count > 0) | ((mark & 1) != 0)
    repeated = tl.where(score > 0, tl.div_rn(score, repetition + tl.zeros_like(score)), score * repetition)
    score = tl.where(is_seen, repeated, score)
    penalty = _real(line, _PRESENCE) + _real(line, _FREQUENCY) * count.to(tl.float32)
    score = tl.where(count > 0, score - penalty, score)
    score += tl.load(bias, mask=is_in, other=0.0)
    is_young = tl.load(line + _LENGTH) - tl.load(line + _PROMPT) < tl.load(line + _MIN_NEW)
    return tl.where(((mark & 2) != 0) & is_young, float("-inf"), score)


@triton.jit
def shape(
    slots, table, logits, counts, marks, bias, scores, best, vocabulary, blocks,
    IS_ADJUSTED: tl.constexpr, IS_CUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write adjusted scores, divided by the temperature if they are to be cut, and the best one of each block."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    is_in = ids < vocabulary
    slot = tl.load(slots + row)
    line = table + slot * _COLUMNS
    score = _load_scores(logits + row * vocabulary, ids, is_in)
    if IS_ADJUSTED:  # noqa: SIM102 - one is decided when it is compiled, the other when it runs
        if tl.load(line + _COUNTS) != 0:
            here = slot * vocabulary + ids
            score = _adjusted(score, line, counts + here, marks + here, bias + here, is_in)
    if IS_CUT:
        temperature = _real(line, _TEMPERATURE)
        if temperature > 0:
            score = tl.div_rn(score, temperature + tl.zeros_like(score))
        tl.store(best + row * blocks + block, tl.max(score, axis=0))
    tl.store(scores + row * vocabulary + ids, score, mask=is_in)


# --- top-k, top-p, min-p ---------------------------------------------------------------------------------------------


@triton.jit
def _best(best, row, blocks, BLOCKS: tl.constexpr):
    at = tl.arange(0, BLOCKS)
    return tl.max(tl.load(best + row * blocks + at, mask=at < blocks, other=float("-inf")), axis=0)


@triton.jit
def _wants_k(line, vocabulary):
    top_k = tl.load(line + _TOP_K)
    return (top_k > 0) & (top_k < vocabulary)


@triton.jit
def _is_searched(line, vocabulary, best):
    """Whether a row is drawn from, and cut by more than its distance from the best."""
    is_limited = _wants_k(line, vocabulary) | (_real(line, _TOP_P) < 1.0)
    return (_real(line, _TEMPERATURE) > 0) & (best > float("-inf")) & is_limited


@triton.jit
def _bin(score, best):
    """Say which bin a score is in, never a lower one for a lower score. What is no number gets a bin as well."""
    distance = tl.minimum((best - score) * _BINS_PER_UNIT, _BINS - 1.0).to(tl.int32)
    return tl.minimum(tl.maximum(distance, 0), _BINS - 1)


@triton.jit
def _mass(score, best):
    return (tl.exp(score - best) * _UNIT_MASS).to(tl.int64)


@triton.jit
def _key(score):
    """Map float32 to int32 that are ordered alike; which zero a limit is makes no difference to what is below it."""
    bits = score.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _score(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def histogram(
    slots, table, scores, best, bin_counts, bin_masses, vocabulary, blocks, BLOCKS: tl.constexpr, BLOCK: tl.constexpr
):
    """Add the scores of a block to the bins of its row."""
    row = tl.program_id(0).to(tl.int64)
    line = table + tl.load(slots + row) * _COLUMNS
    top = _best(best, row, blocks, BLOCKS)
    if _is_searched(line, vocabulary, top):
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        is_in = ids < vocabulary
        score = tl.load(scores + row * vocabulary + ids, mask=is_in, other=float("-inf"))
        number = _bin(score, top)
        at = row * _BINS + number
        is_near = is_in & (number < _BINS - 1)
        mass = _mass(score, top)
        tl.atomic_add(bin_counts + at, 1, mask=is_near, sem="relaxed")
        tl.atomic_add(bin_masses + at, mass, mask=is_near & (mass > 0), sem="relaxed")


@triton.jit
def _collect(scores, keys, taken, vocabulary, best, number, BLOCK: tl.constexpr):
    """Write the keys of the scores in one bin side by side, in any order; return how many. `taken` is zero, and stays.

    Their places are given out by an atomic counter: by a sum over the places before them each block of the row would
    have to wait for the one before it.
    """
    tl.debug_barrier()  # what was collected before has been read, and the bins are empty
    for start in range(0, vocabulary, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        score = tl.load(scores + ids, mask=ids < vocabulary, other=float("-inf"))
        is_here = (ids < vocabulary) & (_bin(score, best) == number)
        at = tl.atomic_add(taken + tl.zeros_like(ids), 1, mask=is_here, sem="relaxed")
        tl.store(keys + at, _key(score), mask=is_here)
    tl.debug_barrier()  # and this is there for all to read
    found = tl.load(taken, volatile=True)
    tl.debug_barrier()
    tl.store(taken, 0)
    return found


@triton.jit
def _count_from(keys, first, found, key, BLOCK: tl.constexpr):
    """Count the keys from one on; `first` is the first block of them, and nearly always the only one."""
    at = tl.arange(0, BLOCK)
    total = tl.sum(((at < found) & (first >= key)).to(tl.int32), axis=0)
    for start in range(BLOCK, found, BLOCK):
        each = tl.load(keys + start + at, mask=start + at < found, other=-(2**31))
        total += tl.sum(((start + at < found) & (each >= key)).to(tl.int32), axis=0)
    return total


@triton.jit
def _mass_of(each, is_counted, best):
    return tl.sum(tl.where(is_counted, _mass(tl.where(is_counted, _score(each), best), best), 0), axis=0)


@triton.jit
def _mass_from(keys, first, found, key, best, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    total = _mass_of(first, (at < found) & (first >= key), best)
    for start in range(BLOCK, found, BLOCK):
        each = tl.load(keys + start + at, mask=start + at < found, other=-(2**31))
        total += _mass_of(each, (start + at < found) & (each >= key), best)
    return total


@triton.jit
def _search_count(keys, found, wanted, best, BLOCK: tl.constexpr):
    """Return the largest key that so many keys are not below, and the mass of those."""
    first = tl.load(keys + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < found, other=-(2**31))
    low = tl.full((), -(2**31), dtype=tl.int64)
    high = tl.full((), 2**31, dtype=tl.int64)
    for _ in range(32):
        middle = (low + high) >> 1
        is_held = _count_from(keys, first, found, middle, BLOCK) >= wanted
        low = tl.where(is_held, middle, low)
        high = tl.where(is_held, high, middle)
    return low.to(tl.int32), _mass_from(keys, first, found, low, best, BLOCK)


@triton.jit
def _search_mass(keys, found, above, wanted, best, BLOCK: tl.constexpr):
    """Return the lowest key that stays: what lies above it, in this bin and in those before, is not enough."""
    first = tl.load(keys + tl.arange(0, BLOCK), mask=tl.arange(0, BLOCK) < found, other=-(2**31))
    low = tl.full((), -(2**31), dtype=tl.int64)
    high = tl.full((), 2**31, dtype=tl.int64)
    for _ in range(32):
        middle = (low + high) >> 1
        is_enough = (above + _mass_from(keys, first, found, middle + 1, best, BLOCK)).to(tl.float64) >= wanted
        low = tl.where(is_enough, middle, low)
        high = tl.where(is_enough, high, middle)
    return (low + 1).to(tl.int32)


@triton.jit
def _kept(line, scores, keys, taken, count, mass, top, vocabulary, BLOCK: tl.constexpr, LIST: tl.constexpr):
    """Return the lowest score that top-k, and top-p over what it leaves, keep."""
    numbers = tl.arange(0, _BINS)
    total = tl.sum(mass, axis=0)
    kept = float("-inf")
    if _wants_k(line, vocabulary):
        top_k = tl.load(line + _TOP_K).to(tl.int32)
        number = tl.sum((tl.cumsum(count, axis=0) < top_k).to(tl.int32), axis=0)
        if number < _BINS:  # else there are fewer near the best one: all of them stay, and what is never drawn
            wanted = top_k - tl.sum(tl.where(numbers < number, count, 0), axis=0)
            found = _collect(scores, keys, taken, vocabulary, top, number, BLOCK)
            key, mass_here = _search_count(keys, found, wanted, top, LIST)
            total = tl.sum(tl.where(numbers < number, mass, 0), axis=0) + mass_here
            kept = _score(key)
    top_p = _real(line, _TOP_P)
    if top_p < 1.0:
        wanted_mass = top_p.to(tl.float64) * total.to(tl.float64)
        number = tl.sum((tl.cumsum(mass, axis=0).to(tl.float64) < wanted_mass).to(tl.int32), axis=0)
        above = tl.sum(tl.where(numbers < number, mass, 0), axis=0)
        found = _collect(scores, keys, taken, vocabulary, top, number, BLOCK)
        if found > 0:
            kept = tl.maximum(kept, _score(_search_mass(keys, found, above, wanted_mass, top, LIST)))
    return kept


@triton.jit
def threshold(
    slots, table, scores, best, bin_counts, bin_masses, keys, lowest, vocabulary, blocks,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """Write the lowest score that a row keeps, and empty its bins for the next step."""
    row = tl.program_id(0).to(tl.int64)
    line = table + tl.load(slots + row) * _COLUMNS
    top = _best(best, row, blocks, BLOCKS)
    kept = float("-inf")
    min_p = _real(line, _MIN_P)
    if (_real(line, _TEMPERATURE) > 0) & (min_p > 0):
        kept = top + tl.log(min_p)
    if _is_searched(line, vocabulary, top):
        here = row * _BINS + tl.arange(0, _BINS)
        count = tl.load(bin_counts + here)
        mass = tl.load(bin_masses + here)
        tl.store(bin_counts + here, 0)
        tl.store(bin_masses + here, 0)
        row_keys, taken = keys + row * vocabulary, bin_counts + row * _BINS
        by_rank = _kept(line, scores + row * vocabulary, row_keys, taken, count, mass, top, vocabulary, BLOCK, LIST)
        kept = tl.maximum(kept, by_rank)
    tl.store(lowest + row, kept)


# --- noise, and the token --------------------------------------------------------------------------------------------


@triton.jit
def _hash(words, state):
    """Finish the hash of `gumbel.GumbelNoise.hashes`: uint32 that wraps."""
    value = words ^ state
    value = ((value << 13) | (value >> 19)) * 5 + _ADD
    value = value ^ _LENGTH_BYTES
    value = (value ^ (value >> 16)) * _MIX1
    value = (value ^ (value >> 13)) * _MIX2
    return value ^ (value >> 16)


@triton.jit
def _scramble(line, COLUMN: tl.constexpr):
    word = tl.load(line + COLUMN).to(tl.uint32) * _C1
    return ((word << 15) | (word >> 17)) * _C2


@triton.jit
def _mix(state):
    return ((state << 13) | (state >> 19)) * 5 + _ADD


@triton.jit
def _row_state(line):
    """Hash all but the token id, as `gumbel.row_states` does."""
    state = _mix(_scramble(line, _SEED_HIGH))
    state = _mix(state ^ _scramble(line, _SEED_LOW))
    return _mix(state ^ _scramble(line, _LENGTH))


@triton.jit
def hash_rows(slots, table, words, out, vocabulary, BLOCK: tl.constexpr):
    """Write the hashes themselves: for the proof that the bits are the same."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = ids < vocabulary
    word = tl.load(words + ids, mask=is_in, other=0).to(tl.uint32, bitcast=True)
    value = _hash(word, _row_state(table + tl.load(slots + row) * _COLUMNS))
    tl.store(out + row * vocabulary + ids, value.to(tl.int32, bitcast=True), mask=is_in)


@triton.jit
def draw(
    slots, table, scores, lowest, words, best, best_ids, vocabulary, blocks, IS_CUT: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the best of score / temperature + noise of each block, the lowest id of equals."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    is_in = ids < vocabulary
    line = table + tl.load(slots + row) * _COLUMNS
    score = _load_scores(scores + row * vocabulary, ids, is_in)
    temperature = _real(line, _TEMPERATURE)
    if temperature > 0:
        if IS_CUT:
            score = tl.where(score < tl.load(lowest + row), float("-inf"), score)
        else:
            score = tl.div_rn(score, temperature + tl.zeros_like(score))
        word = tl.load(words + ids, mask=is_in, other=0).to(tl.uint32, bitcast=True)
        bits = _hash(word, _row_state(line))
        uniform = tl.minimum((bits.to(tl.float32) + 0.5) * _SCALE, _BELOW_ONE)
        # -log1p(-u) by Kahan's way: Triton has no log1p of its own, and log(1 - u) would lose what small u say.
        rest = 1.0 - uniform
        exponential = tl.where(rest == 1.0, uniform, tl.log(rest) * (uniform / (rest - 1.0)))
        score -= tl.log(exponential)
    value, index = tl.max(score, axis=0, return_indices=True)
    tl.store(best + row * blocks + block, value)
    tl.store(best_ids + row * blocks + block, block * BLOCK + index)


@triton.jit
def finish(
    slots, table, counts, best, best_ids, tokens, padding, vocabulary, blocks,
    IS_COUNTED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Take the best of all blocks, and append it to its sequence; padding stays as it is."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCKS)
    _, index = tl.max(
        tl.load(best + row * blocks + at, mask=at < blocks, other=float("-inf")), axis=0, return_indices=True
    )
    token = tl.load(best_ids + row * blocks + index).to(tl.int64)
    tl.store(tokens + row, token)
    slot = tl.load(slots + row)
    if slot != padding:
        line = table + slot * _COLUMNS
        tl.store(line + _TOKEN, token)
        tl.store(line + _LENGTH, tl.load(line + _LENGTH) + 1)
        if IS_COUNTED & (tl.load(line + _COUNTS) != 0):
            count = counts + slot * vocabulary + token
            tl.store(count, tl.load(count) + 1)
