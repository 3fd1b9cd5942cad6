"""The Triton kernels under Triton's interpreter: the same numbers as plain torch, the same bits where bits matter.

What an interpreter cannot show, that they compile, `test_kernel_builds.py` does, and how fast they are
`bench/gpu_first_run.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from zmqrt.worker.engines.base import SamplingParams
from zmqrt.worker.engines.generate import kernels
from zmqrt.worker.engines.generate.kernel_ops import KernelOps, differences, working
from zmqrt.worker.engines.generate.kernel_sampler import KernelSampler, table_of
from zmqrt.worker.engines.generate.ops import TorchOps
from zmqrt.worker.engines.generate.sequence_table import DecodeInputs
from zmqrt.worker.engines.generate.slot_sampler import Sample, SlotSampler
from zmqrt.worker.engines.generate.transfers import Transfers

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.04), (torch.float16, 0.01)])
def test_each_kernel_computes_what_torch_does(dtype: torch.dtype, most: float) -> None:
    """Within the rounding of the type; hashes and draws exactly."""
    found = differences(dtype, "cpu")

    assert {name: value for name, value in found.items() if value > most} == {}
    assert (found["hash"], found["draw"]) == (0.0, 0.0)
    operations, why_not = working(dtype, "cpu")
    assert (type(operations), why_not) == (KernelOps, None)


@pytest.mark.parametrize("name", ["add_norm", "gate", "rotate_and_store", "inputs"])
def test_the_self_test_finds_a_kernel_that_is_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes out of it is a little off, or an id further."""
    right = getattr(KernelOps, name)

    def wrong(*arguments: Any) -> Any:
        result = right(*arguments)
        if isinstance(result, DecodeInputs):
            return replace(result, lengths=result.lengths + 1)
        return (result[0], result[1] + 0.1) if isinstance(result, tuple) else result + 1

    monkeypatch.setattr(KernelOps, name, wrong)

    operations, why_not = working(torch.bfloat16, "cpu")
    assert type(operations) is TorchOps
    assert f"{name} is off by" in (why_not or "")


def test_a_token_that_is_wrong_costs_the_kernels_that_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is enough; norms and the others are as right as before."""
    right = KernelSampler.draw

    def wrong(*arguments: Any) -> Sample:
        tokens = right(*arguments).tokens.clone()
        tokens[-1] += 1
        return Sample(tokens)

    monkeypatch.setattr(KernelSampler, "draw", wrong)

    operations, why_not = working(torch.bfloat16, "cpu")
    assert type(operations) is KernelOps
    assert type(operations.sampler(table_of([SamplingParams()], 10, Transfers("cpu")))) is SlotSampler
    assert "draw is off by" in (why_not or "")


def test_a_kernel_that_does_not_compile_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is the reason."""
    monkeypatch.setattr(kernels, "gate", None)

    operations, why_not = working(torch.bfloat16, "cpu")
    assert type(operations) is TorchOps
    assert (why_not or "").startswith("TypeError")
