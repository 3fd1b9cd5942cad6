"""How much an engine on a GPU does at once: by its memory, by what a step took, or as it was told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.engines import describe
from zmqrt.worker.engines.generate import sizing
from zmqrt.worker.engines.generate.dry_run import DryRun
from zmqrt.worker.engines.generate.hf_loader import Loaded
from zmqrt.worker.engines.generate.schedule import SchedulerLimits

KV_BYTES = 128 << 10
"""A token of an 8B model."""


def limits(free_gib: float, *, context: int = 131_072, slots: int = 0, **options: str) -> SchedulerLimits:
    """Work out the limits of a model of 8B on a card with so much free after loading."""
    loaded = Loaded(None, context, frozenset(), KV_BYTES, is_cuda=True)
    spec = describe(Path(), slots=slots, options=options)
    return sizing.device_limits(spec, loaded, int(free_gib * 2**30))


@pytest.mark.parametrize(
    ("free_gib", "options", "rows"),
    [
        (5, {}, 64),
        (30, {}, 64),
        (40, {}, 128),
        (110, {}, 256),
        (110, {"kv_mib": "4096"}, 64),
        (110, {"deterministic": "1"}, 64),
        (5, {"context": 256}, 128),
        (110, {"slots": 7}, 7),
    ],
)
def test_slots_go_by_the_tokens_that_each_of_them_gets(free_gib: float, options: dict[str, Any], rows: int) -> None:
    """Or by what was said; where every pass is as long as all of them, the fewest."""
    assert limits(free_gib, **options).slots == rows


def test_sequences_computed_one_by_one_are_few() -> None:
    """As in float32, which torch's flash attention does not take."""
    assert sizing.plain_rows(describe(Path(), slots=0)) == 16


@pytest.mark.parametrize(
    ("seconds", "chunk"),
    [(0.110, 1088), (0.015, 2048), (0.0, 2048), (1.1, 256), (60.0, 256)],
)
def test_a_piece_takes_thirty_milliseconds_of_those_who_run(seconds: float, chunk: int) -> None:
    """Within bounds, for a clock may be wrong; and all that was tried where nobody runs."""
    paced = sizing.paced(describe(Path()), limits(110), DryRun(4096, seconds, 1 << 30, 12))

    assert (paced.chunk_tokens, paced.idle_chunk_tokens) == (chunk, 4096)


def test_no_piece_is_longer_than_the_one_that_there_was_memory_for() -> None:
    """Not even one that was asked for; but where every bit counts pieces are as on any other node."""
    seen = DryRun(256, 0.01, 1 << 30, 12)
    nothing, told, exact = (describe(Path(), options=one) for one in ({}, {"chunk": "1000"}, {"deterministic": "1"}))

    assert sizing.paced(nothing, limits(110), seen).idle_chunk_tokens == 256
    asked = sizing.paced(told, limits(110, chunk="1000"), seen)
    assert (asked.chunk_tokens, asked.idle_chunk_tokens) == (256, 256)
    same = sizing.paced(exact, limits(110, deterministic="1"), seen)
    assert (same.chunk_tokens, same.idle_chunk_tokens) == (512, 512)


def test_what_a_step_takes_is_kept_free_and_graphs_and_tables_too() -> None:
    """A tenth more than was seen; more rows and graphs cost more."""
    few, many = limits(110, slots=8), limits(110, slots=64)
    seen, more = (DryRun(4096, 0.1, most << 30, 12) for most in (1, 2))
    longer = DryRun(4096, 0.1, 1 << 30, 36)  # as many sizes, for three lengths each

    def kept(run: DryRun, of: SchedulerLimits, *, has_graphs: bool = True) -> float:
        return sizing.reserve(run, of, 128_000, has_graphs=has_graphs) / 2**30

    assert kept(more, few) - kept(seen, few) == pytest.approx(1.1)
    assert kept(longer, few) - kept(seen, few) == pytest.approx(24 * 4 * 10 / 1024)
    assert 1.3 < kept(seen, few, has_graphs=False) < kept(seen, few) < kept(seen, many) < 2.5
