"""Decode attention by kernels of our own, in Triton's interpreter: the definition in plain torch decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from support.engines import requests_of_all_kinds, tokens_of
from support.tiny import tiny_model
from zmqrt.worker.engines.generate import split_kv
from zmqrt.worker.engines.generate.attention import AttentionShape
from zmqrt.worker.engines.generate.device_runner import DeviceRunner
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.flash import Layout, Operation, plain
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.engines.generate.llama import LlamaDecoder
from zmqrt.worker.engines.generate.schedule import SchedulerLimits
from zmqrt.worker.engines.generate.split_kv import SplitKvAttention, why_not
from zmqrt.worker.engines.generate.torch_runner import TorchRunner

pytestmark = pytest.mark.integration
MOST = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""How far from the definition, of values of at most four: a rounding of the type."""
ROWS = 12
TOKENS = 8192


def operation_for(shape: AttentionShape, *, is_deterministic: bool = False) -> SplitKvAttention:
    """Make the operation, with room for the cases here."""
    return SplitKvAttention(shape, ROWS, TOKENS, device="cpu", is_deterministic=is_deterministic, pieces=plain)


class Case:
    """Sequences of some lengths, anywhere in a pool that is not a number wherever nobody's tokens lie."""

    def __init__(self, shape: AttentionShape, lengths: Sequence[int], *, padding: int = 0, seed: int = 1) -> None:
        print(f"seed {seed}")
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        gaps = [rng.randrange(1, 40) for _ in lengths]
        self.tokens = sum(lengths) + sum(gaps) + 1
        self.shape = shape
        self.starts = [0] * len(lengths)
        at = 0
        for number in rng.sample(range(len(lengths)), len(lengths)):
            self.starts[number] = at = at + gaps[number]
            at += lengths[number]
        nowhere = self.tokens - 1
        self.starts += [nowhere] * padding
        self.lengths = [*lengths, *[1] * padding]
        size = (self.tokens, shape.kv_heads, shape.head_size)
        self.keys, self.values = (torch.full(size, torch.nan) for _ in range(2))
        for start, length in zip(self.starts, self.lengths, strict=True):
            for pool in (self.keys, self.values):
                pool[start : start + length] = torch.randn((length, *size[1:]), generator=generator)
        rows = (len(self.lengths), shape.heads + 2 * shape.kv_heads, shape.head_size)
        self.query = torch.randn(rows, generator=generator)[:, : shape.heads]  # a view, as plain torch turns it

    def layout(self) -> Layout:
        """Describe them."""
        count = len(self.lengths)
        places = [start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True)]
        starts, lengths = (torch.tensor(n, dtype=torch.int32) for n in ([*self.starts, 0], self.lengths))
        bounds = torch.arange(count + 1, dtype=torch.int32)
        return Layout(torch.tensor(places), bounds, starts, lengths, 1, max(self.lengths))

    def attend(self, operation: Operation, dtype: torch.dtype) -> torch.Tensor:
        """Attend with numbers of a type."""
        query = self.query.to(dtype)
        return operation(query, self.keys.to(dtype), self.values.to(dtype), self.layout(), None)

    def difference(self, dtype: torch.dtype, *, is_deterministic: bool = False) -> float:
        """Return how far the kernels are from the definition; not-a-number is infinitely far."""
        ours = operation_for(self.shape, is_deterministic=is_deterministic)
        off = self.attend(ours, dtype).float() - self.attend(plain, dtype).float()
        return float(off.abs().nan_to_num(torch.inf).max())


def small(heads: int = 4, kv_heads: int = 2, head_size: int = 16) -> AttentionShape:
    """Return a shape of one layer."""
    return AttentionShape(layers=1, heads=heads, kv_heads=kv_heads, head_size=head_size)


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_size"),
    [(4, 2, 64), (3, 1, 16), (5, 5, 32), (14, 2, 64), (20, 1, 24), (6, 3, 80), (2, 2, 128), (2, 1, 256)],
)
def test_any_heads_and_groups(heads: int, kv_heads: int, head_size: int, dtype: torch.dtype) -> None:
    """Odd numbers of heads, one head of keys for all or each, more in a group than tensor cores take."""
    case = Case(small(heads, kv_heads, head_size), [1, 129, 300], padding=1, seed=heads)

    assert case.difference(dtype) <= MOST[dtype]


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_any_lengths(seed: int, *, is_deterministic: bool) -> None:
    """From one token to several splits, around the edges of tiles, alone or many, padding or none."""
    rng = random.Random(seed)
    edges = [1, 127, 128, 129, 255, 256, 257, 512, 513, 1024, 1300]
    lengths = [rng.choice(edges) for _ in range(rng.randrange(1, 6))]

    assert (
        Case(small(), lengths, padding=seed, seed=seed).difference(torch.float32, is_deterministic=is_deterministic)
        <= MOST[torch.float32]
    )


def test_more_splits_than_are_put_together_at_once() -> None:
    """Seventeen and a bit."""
    assert Case(small(2, 1), [17 * 256 + 3, 5]).difference(torch.float32, is_deterministic=True) <= MOST[torch.float32]


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize("factor", [0.0, 30.0, 200.0])
def test_extreme_logits(factor: float, dtype: torch.dtype) -> None:
    """Scores of tens of thousands, apart and alike: one key takes all, or all the same."""
    case = Case(small(), [600, 257, 1])
    case.query *= factor
    case.keys *= factor or 1.0

    # Scores of thousands are known to a thousandth, and weights are powers of them.
    assert case.difference(dtype, is_deterministic=True) <= max(MOST[dtype], 2e-3)


def test_the_same_bits_whoever_else_is_there() -> None:
    """Where every bit counts a sequence is cut by its own length alone."""
    case = Case(small(), [700, 1, 300, 129], padding=3)
    operation = operation_for(case.shape, is_deterministic=True)
    together = case.attend(operation, torch.bfloat16)
    alone: list[torch.Tensor] = []
    for number in range(4):
        case.starts[0], case.lengths[0] = case.starts[number], case.lengths[number]
        one = Layout(
            torch.zeros(1, dtype=torch.int64),
            torch.arange(2, dtype=torch.int32),
            torch.tensor([case.starts[number], 0], dtype=torch.int32),
            torch.tensor([case.lengths[number]], dtype=torch.int32),
            1,
            case.lengths[number],
        )
        query, keys, values = (t.to(torch.bfloat16) for t in (case.query[number : number + 1], case.keys, case.values))
        alone.append(operation(query, keys, values, one, None))

    assert torch.equal(torch.cat(alone), together[:4])


@pytest.mark.parametrize("seed", range(5))
def test_a_plan_reads_each_token_once_and_fits_its_room(seed: int) -> None:
    """However the lengths are: at most so many splits, whole tiles but for each last one, about equally long."""
    rng = random.Random(seed)
    lengths = [rng.choice([0, 1, 5, 64, 1000, 20000, 131072]) for _ in range(rng.randrange(1, 20))]
    starts = [1000 * number for number in range(len(lengths))]
    target, tile, count = rng.choice([1, 3, 66]), 64, len(lengths)
    work, firsts = torch.full((target + count, 3), -1, dtype=torch.int32), torch.full((count + 1,), -1).int()
    numbers = (torch.tensor(starts).int(), torch.tensor(lengths).int())

    split_kv.kernels.plan_splits[(1,)](*numbers, work, firsts, count, target, len(work), LEAST=128, TILE=tile, BLOCK=32)

    tables: Any = (firsts, work)
    first: list[int] = tables[0].tolist()
    assert first[0] == 0
    assert first[-1] <= target + count
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        splits: list[list[int]] = tables[1][first[number] : first[number + 1]].tolist()
        assert [owner for owner, _, _ in splits] == [number] * len(splits)
        read = [place for _, begin, end in splits for place in (begin, end)]
        assert read[1:-1:2] == read[2::2]
        assert (read[:1], read[-1:]) == (([start], [start + length]) if length else ([], []))
        assert all((end - begin) % tile == 0 for _, begin, end in splits[:-1])
        assert all(0 < end - begin <= max(128, -(-sum(lengths) // target) + tile) for _, begin, end in splits)


def test_a_plan_never_writes_behind_its_room() -> None:
    """What does not fit is left out, and each sequence's splits stay in order."""
    work, firsts = torch.full((9, 3), -1, dtype=torch.int32), torch.full((4,), -1).int()
    numbers = (torch.tensor([0, 1000, 2000]).int(), torch.tensor([300, 900, 200]).int())

    split_kv.kernels.plan_splits[(1,)](*numbers, work, firsts, 3, 2**30, 5, LEAST=128, TILE=64, BLOCK=4)

    tables: Any = (firsts, work)
    assert tables[0].tolist() == [0, 3, 5, 5]
    assert tables[1][5:].eq(-1).all()
    assert tables[1][:5, 0].tolist() == [0, 0, 0, 1, 1]


def test_a_piece_of_a_prompt_goes_to_the_other_operation() -> None:
    """One that asks for several tokens, and one that is padded."""
    asked: list[Layout] = []

    def pieces(query: torch.Tensor, _keys: Any, _values: Any, layout: Layout, _scale: Any) -> torch.Tensor:
        asked.append(layout)
        return query

    shape, none = small(), torch.zeros(3, dtype=torch.int32)
    operation = SplitKvAttention(shape, ROWS, TOKENS, device="cpu", pieces=pieces)
    pool, query = torch.zeros(5, 2, 16), torch.zeros(3, 4, 16)
    layouts = [Layout(none.long(), none, none, none[:2], most_queries, 1) for most_queries in (2, 1)]
    for layout in layouts:
        operation(query, pool, pool, layout, None)

    assert asked == layouts


def test_the_self_test_passes_what_is_right() -> None:
    """In 16 bits, both ways of cutting."""
    assert why_not(small(), torch.bfloat16, "cpu") is None


@pytest.mark.parametrize("wrong", ["scale", "lengths", "values"])
def test_the_self_test_finds_a_kernel_that_is_wrong(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale left out, a token too few, values where keys should be."""
    right = SplitKvAttention.__call__

    def call(self: Any, query: Any, keys: Any, values: Any, layout: Layout, scale: float | None) -> torch.Tensor:
        lengths = layout.lengths - 1 if wrong == "lengths" else layout.lengths
        other = Layout(layout.places, layout.bounds, layout.starts, lengths, 1, layout.most_keys)
        if wrong == "values":
            keys = values
        attended: torch.Tensor = right(self, query, keys, values, other, 1.0 if wrong == "scale" else scale)
        return attended

    monkeypatch.setattr(SplitKvAttention, "__call__", call)

    assert (why_not(small(), torch.float16, "cpu") or "").startswith("it is off by")


def test_a_kernel_that_does_not_compile_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the reason."""
    monkeypatch.setattr(split_kv.kernels, "attend_splits", None)

    assert (why_not(small(), torch.float16, "cpu") or "").startswith("TypeError")


def test_an_engine_draws_with_it_what_it_draws_without(tmp_path: Path) -> None:
    """Whole requests, sequences that come and go, and padding."""
    folder = tiny_model(tmp_path)
    requests = requests_of_all_kinds(3, vocabulary=256, tokens=4)
    limits = SchedulerLimits(slots=4, context=256, chunk_tokens=64, depth=2)

    def drawn(make: Callable[[LlamaDecoder], Any]) -> dict[int, list[int]]:
        model = untyped("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return tokens_of(GenerateEngine(make(LlamaDecoder(model)), kv_tokens=1024, limits=limits), requests)

    def on_device(decoder: LlamaDecoder) -> DeviceRunner:
        operation = SplitKvAttention(decoder.shape, 4, 1024, device="cpu", pieces=plain)
        return DeviceRunner(decoder, 1024, limits, dtype=torch.float32, device="cpu", operation=operation)

    ours = drawn(on_device)
    limits.depth = 1

    assert ours == drawn(lambda decoder: TorchRunner(decoder, 1024, limits, dtype=torch.float32, device="cpu"))
