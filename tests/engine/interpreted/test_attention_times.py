"""The first run on a GPU times our own attention as it does torch's."""

from __future__ import annotations

import attention_times
import attentions
import pytest
import torch

from zmqrt.worker.engines.generate import split_kv
from zmqrt.worker.engines.generate.attention import AttentionShape

pytestmark = pytest.mark.integration


def works(*_of: object) -> None:
    """Say that nothing speaks against it: test_attention_kernels.py tries that."""


def test_our_own_attention_is_found_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the definition, which stands in for torch's here."""
    shape = AttentionShape(1, 4, 2, 32)
    monkeypatch.setattr(attention_times, "CALLS", 2)
    monkeypatch.setattr(attention_times, "_REPLAYS", 1)
    monkeypatch.setattr(split_kv, "why_not", works)

    makers, _ = attentions.find(shape, torch.float32, "cpu")
    words = {"batches": (2,), "lengths": (40,), "bounds": (64, 128)}
    found = dict(attention_times.measure(shape, "cpu", bytes_per_s=1e9, **words))

    assert list(makers) == ["definition", "triton"]
    assert list(found) == [
        "left out",
        "definition, batch 2, length 40, at most 64",
        "definition, batch 2, length 40, at most 128",
        "triton, batch 2, length 40, at most 40",
        "triton, deterministic, batch 2, length 40, at most 40",
    ]
