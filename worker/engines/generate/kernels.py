# pyright: basic
"""The small operations of a decoder as one GPU kernel each, in Triton (Tillet et al. 2019). What each does is said by
`TorchOps`, how each is called by `kernel_ops.py`. Triton is a language of its own: nothing here is typed.
"""

from __future__ import annotations

import os
from typing import Final

import triton
import triton.language as tl

from ..murmur3 import LENGTH_BYTES, MIX1, MIX2, ROUND_ADD

# Triton 3.9 warns where nobody says whether a product and a sum may be one instruction, and 3.10 would say no, which is
# slower. It is read at each launch, not at the import.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
_ADD: Final = tl.constexpr(ROUND_ADD)
_MIX1: Final = tl.constexpr(MIX1)
_MIX2: Final = tl.constexpr(MIX2)
_LENGTH: Final = tl.constexpr(LENGTH_BYTES)
_SCALE: Final = tl.constexpr(2.0**-32)
_BELOW_ONE: Final = tl.constexpr(1.0 - 2.0**-24)


@triton.jit
def add_norm(hidden, change, weight, summed, normed, width, eps, HAS_CHANGE: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    is_in = at < width
    here = tl.program_id(0).to(tl.int64) * width + at
    value = tl.load(hidden + here, mask=is_in, other=0.0).to(tl.float32)
    if HAS_CHANGE:
        value += tl.load(change + here, mask=is_in, other=0.0).to(tl.float32)
        # The norm sees the sum as it is stored: the next layer, and any other way of computing this one, does too.
        value = value.to(summed.dtype.element_ty)
        tl.store(summed + here, value, mask=is_in)
        value = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    scaled = value * scale * tl.load(weight + at, mask=is_in, other=0.0).to(tl.float32)
    tl.store(normed + here, scaled.to(normed.dtype.element_ty), mask=is_in)


@triton.jit
def rotate_and_store(
    heads, cos, sin, places, query, keys, values, token_stride, head_stride, n_query, n_kv, half, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    is_in = at < half
    source = heads + (token * (n_query + 2 * n_kv) + head) * (2 * half)
    low = tl.load(source + at, mask=is_in, other=0.0)
    high = tl.load(source + half + at, mask=is_in, other=0.0)
    place = tl.load(places + token) * token_stride
    if head < n_query + n_kv:
        angle = token * (2 * half) + at
        cos_low = tl.load(cos + angle, mask=is_in, other=0.0).to(tl.float32)
        sin_low = tl.load(sin + angle, mask=is_in, other=0.0).to(tl.float32)
        cos_high = tl.load(cos + angle + half, mask=is_in, other=0.0).to(tl.float32)
        sin_high = tl.load(sin + angle + half, mask=is_in, other=0.0).to(tl.float32)
        turned_low = low.to(tl.float32) * cos_low - high.to(tl.float32) * sin_low
        turned_high = high.to(tl.float32) * cos_high + low.to(tl.float32) * sin_high
        low = turned_low.to(low.dtype)
        high = turned_high.to(high.dtype)
    if head < n_query:
        target = query + (token * n_query + head) * (2 * half)
        tl.store(target + at, low, mask=is_in)
        tl.store(target + half + at, high, mask=is_in)
    elif head < n_query + n_kv:
        target = keys + place + (head - n_query) * head_stride
        tl.store(target + at, low, mask=is_in)
        tl.store(target + half + at, high, mask=is_in)
    else:
        target = values + place + (head - n_query - n_kv) * head_stride
        tl.store(target + at, low, mask=is_in)
        tl.store(target + half + at, high, mask=is_in)


@triton.jit
def gate(gate_up, out, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = at < width
    gate = tl.load(gate_up + token * 2 * width + at, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * width + width + at, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out + token * width + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=is_in)


@triton.jit
def _hash(words, state):
    """Finish the hash of `gumbel.GumbelNoise.hashes`: uint32 that wraps."""
    value = words ^ state
    value = ((value << 13) | (value >> 19)) * 5 + _ADD
    value = value ^ _LENGTH
    value = (value ^ (value >> 16)) * _MIX1
    value = (value ^ (value >> 13)) * _MIX2
    return value ^ (value >> 16)


@triton.jit
def hash_rows(words, states, out, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = ids < vocabulary
    word = tl.load(words + ids, mask=is_in, other=0).to(tl.uint32, bitcast=True)
    value = _hash(word, tl.load(states + row).to(tl.uint32, bitcast=True))
    tl.store(out + row * vocabulary + ids, value.to(tl.int32, bitcast=True), mask=is_in)


@triton.jit
def draw(scores, temperatures, states, words, best, best_ids, vocabulary, blocks, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    is_in = ids < vocabulary
    score = tl.load(scores + row * vocabulary + ids, mask=is_in, other=float("-inf"))
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        word = tl.load(words + ids, mask=is_in, other=0).to(tl.uint32, bitcast=True)
        bits = _hash(word, tl.load(states + row).to(tl.uint32, bitcast=True))
        uniform = tl.minimum((bits.to(tl.float32) + 0.5) * _SCALE, _BELOW_ONE)
        # -log1p(-u) by Kahan's way: Triton has no log1p of its own, and log(1 - u) would lose what small u say.
        rest = 1.0 - uniform
        exponential = tl.where(rest == 1.0, uniform, tl.log(rest) * (uniform / (rest - 1.0)))
        score = score / temperature - tl.log(exponential)
    value, index = tl.max(score, axis=0, return_indices=True)
    tl.store(best + row * blocks + block, value)
    tl.store(best_ids + row * blocks + block, (block * BLOCK + index).to(tl.int64))
