# pyright: basic
"""Attention of one query for each of many sequences as three GPU kernels: who reads what, the reading, the sum of it.

A decode step reads every key and value once and computes next to nothing with them, so it takes as long as the memory
takes to deliver them, provided that all of the device asks at the same time. One program for each sequence and head of
keys does not do that: a long sequence is read by one processor while the others are done. So each sequence is cut into
splits of about equal length (split-KV, "Flash-Decoding", Dao et al. 2023): each split has its own softmax, of which
its greatest score, the sum of its weights and its weighted values are kept, and a second pass puts those together.

    m = max m_i,   l = sum l_i exp(m_i - m),   output = sum acc_i exp(m_i - m) / l

Scores are kept in units of log2, since exp2 is one instruction. Triton is a language of its own: nothing here is typed.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as in kernels.py


@triton.jit(do_not_specialize=["sequences", "target", "room"])
def plan_splits(
    starts, lengths, work, firsts, sequences, target, room, LEAST: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """Cut sequences into at most `target` + `sequences` splits: `work` says of each split whose it is and which tokens
    of the pool it reads, `firsts` where the splits of each sequence begin. One program, once a step.

    Lengths are known to the device alone: a recorded step goes on with what they have become. A split is as long as
    all tokens shared out evenly, at least `LEAST`; then each sequence shares its own out evenly among its splits, or
    the last would be left with a rest. All are multiples of `TILE`, which is read at once. What `work` has no `room`
    for is left out: a wrong answer is found, and a write behind it is not.
    """
    at = tl.arange(0, BLOCK)
    is_in = at < sequences
    length = tl.load(lengths + at, mask=is_in, other=0)
    start = tl.load(starts + at, mask=is_in, other=0)
    most = tl.maximum(tl.cdiv(tl.sum(length, axis=0), target), LEAST)
    most = tl.cdiv(most, TILE) * TILE
    size = tl.cdiv(tl.cdiv(length, tl.maximum(tl.cdiv(length, most), 1)), TILE) * TILE
    count = tl.cdiv(length, tl.maximum(size, TILE))
    behind = tl.cumsum(count, axis=0)
    first = tl.minimum(behind - count, room)
    behind = tl.minimum(behind, room)
    count = behind - first
    tl.store(firsts, 0)
    tl.store(firsts + 1 + at, behind, mask=is_in)
    for split in range(tl.max(count, axis=0)):
        here = work + (first + split) * 3
        begin = start + split * size
        tl.store(here, at, mask=split < count)
        tl.store(here + 1, begin, mask=split < count)
        tl.store(here + 2, tl.minimum(begin + size, start + length), mask=split < count)


@triton.jit(do_not_specialize=["sequences"])
def attend_splits(
    query,
    keys,
    values,
    work,
    firsts,
    partial,
    stats,
    scale,
    sequences,
    query_stride,
    query_head_stride,
    token_stride,
    head_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attend to each split with all queries that share a head of keys, which are thus read once for the group.

    The queries of a group are the rows of a matrix product, filled up to the 16 that tensor cores take; that most of
    them are padding costs nothing beside the memory. There may be more splits than programs: each goes on to another.
    """
    kv_head = tl.program_id(1)
    row = tl.arange(0, ROWS)
    at = tl.arange(0, WIDTH)
    head = kv_head * GROUP + row
    is_query = (row < GROUP)[:, None] & (at < SIZE)[None, :]
    count = tl.load(firsts + sequences)
    for item in range(tl.program_id(0), count, tl.num_programs(0)):
        sequence = tl.load(work + item * 3).to(tl.int64)
        begin = tl.load(work + item * 3 + 1)
        end = tl.load(work + item * 3 + 2)
        of_row = query + sequence * query_stride + head * query_head_stride
        turned = tl.load(of_row[:, None] + at[None, :], mask=is_query, other=0.0)
        best = tl.full((ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, WIDTH), tl.float32)
        for tile in range(begin, end, TILE):
            place = tile + tl.arange(0, TILE)
            is_key = place < end
            offset = place.to(tl.int64) * token_stride + kv_head * head_stride
            is_in = is_key[:, None] & (at < SIZE)[None, :]
            key = tl.load(keys + offset[:, None] + at[None, :], mask=is_in, other=0.0)
            score = tl.dot(turned, tl.trans(key), input_precision="ieee") * scale
            score = tl.where(is_key[None, :], score, float("-inf"))
            value = tl.load(values + offset[:, None] + at[None, :], mask=is_in, other=0.0)
            # The first key of a tile is always one of the split, so the maximum is a number from the first tile on.
            higher = tl.maximum(best, tl.max(score, axis=1))
            weight = tl.exp2(score - higher[:, None])
            shrink = tl.exp2(best - higher)
            mass = mass * shrink + tl.sum(weight, axis=1)
            total = total * shrink[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
            best = higher
        here = (item * tl.num_programs(1) * GROUP + head).to(tl.int64)
        tl.store(partial + here[:, None] * SIZE + at[None, :], total, mask=is_query)
        tl.store(stats + here * 2, best, mask=row < GROUP)
        tl.store(stats + here * 2 + 1, mass, mask=row < GROUP)


@triton.jit
def combine_splits(partial, stats, firsts, output, SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Put the splits of one sequence and head together, `BLOCK` at a time; a sequence without any comes out as zero."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    heads = tl.num_programs(1)
    at = tl.arange(0, WIDTH)
    first = tl.load(firsts + sequence)
    behind = tl.load(firsts + sequence + 1)
    best = tl.full((1,), float("-inf"), tl.float32)
    mass = tl.zeros((1,), tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for block in range(first, behind, BLOCK):
        item = block + tl.arange(0, BLOCK)
        is_in = item < behind
        here = item.to(tl.int64) * heads + head
        tops = tl.load(stats + here * 2, mask=is_in, other=float("-inf"))
        masses = tl.load(stats + here * 2 + 1, mask=is_in, other=0.0)
        parts = tl.load(
            partial + here[:, None] * SIZE + at[None, :], mask=is_in[:, None] & (at < SIZE)[None, :], other=0.0
        )
        higher = tl.maximum(best, tl.max(tops, axis=0))
        weight = tl.exp2(tops - higher)
        shrink = tl.exp2(best - higher)
        mass = mass * shrink + tl.sum(masses * weight, axis=0)
        total = total * shrink + tl.sum(parts * weight[:, None], axis=0)
        best = higher
    # The key with the greatest score has a weight of one, so a sum of weights below one says that there was no key.
    total = total / tl.maximum(mass, 1.0)
    tl.store(output + (sequence * heads + head) * SIZE + at, total.to(output.dtype.element_ty), mask=at < SIZE)
