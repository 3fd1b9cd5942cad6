# pyright: basic
"""The small operations of a decoder as one GPU kernel each, in Triton (Tillet et al. 2019). What each does is said by
`TorchOps`, how each is called by `kernel_ops.py`. Triton is a language of its own: nothing here is typed.
"""

from __future__ import annotations

import os
from typing import Final

import triton
import triton.language as tl

from . import sequence_table

# Triton 3.9 warns where nobody says whether a product and a sum may be one instruction, and 3.10 would say no, which is
# slower. It is read at each launch, not at the import.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
_COLUMNS: Final = tl.constexpr(sequence_table.COLUMNS)
_TOKEN: Final = tl.constexpr(sequence_table.TOKEN)
_LENGTH: Final = tl.constexpr(sequence_table.LENGTH)
_START: Final = tl.constexpr(sequence_table.START)


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
    heads, cos, sin, positions, places, query_norm, key_norm, query, keys, values, token_stride, head_stride,
    n_query, n_kv, half, eps, HAS_NORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    at = tl.arange(0, BLOCK)
    is_in = at < half
    source = heads + (token * (n_query + 2 * n_kv) + head) * (2 * half)
    low = tl.load(source + at, mask=is_in, other=0.0)
    high = tl.load(source + half + at, mask=is_in, other=0.0)
    place = tl.load(places + token) * token_stride
    if head < n_query + n_kv:
        if HAS_NORM:
            weight = query_norm
            if head >= n_query:
                weight = key_norm
            wide_low = low.to(tl.float32)
            wide_high = high.to(tl.float32)
            squares = tl.sum(wide_low * wide_low + wide_high * wide_high, axis=0)
            scale = tl.rsqrt(squares / (2 * half) + eps)
            # Rounded in between, as where the norm is an operation of its own.
            low = (wide_low * scale * tl.load(weight + at, mask=is_in, other=0.0).to(tl.float32)).to(low.dtype)
            high = (wide_high * scale * tl.load(weight + half + at, mask=is_in, other=0.0).to(tl.float32)).to(
                high.dtype
            )
        angle = tl.load(positions + token) * (2 * half) + at
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
def read_inputs(slots, table, token_ids, positions, places, starts, lengths, rows, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    is_in = row < rows
    line = table + tl.load(slots + row % rows) * _COLUMNS
    length = tl.load(line + _LENGTH)
    start = tl.load(line + _START)
    tl.store(token_ids + row, tl.load(line + _TOKEN), mask=is_in)
    tl.store(positions + row, length - 1, mask=is_in)
    tl.store(places + row, start + length - 1, mask=is_in)
    tl.store(lengths + row, length.to(tl.int32), mask=is_in)
    tl.store(starts + row, start.to(tl.int32), mask=row <= rows)  # the last one is the first again
