"""What only a GPU can show: recorded steps, the flash operation, compiled kernels; `make test-all` runs it there."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from support.engines import ask, describe, requests_of_all_kinds, run, tokens_of
from support.no_waiting import no_waiting
from support.tiny import silent, tiny_model
from zmqrt.worker.engines.base import SamplingParams
from zmqrt.worker.engines.generate.device_runner import DeviceRunner
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.engine_maker import ATTENTIONS
from zmqrt.worker.engines.generate.factory import factory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
Make = Callable[..., GenerateEngine]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make engines of the tiny model on the GPU."""
    folder: Path = tiny_model(tmp_path_factory.mktemp("models"))

    def made(**options: str) -> GenerateEngine:
        options = {"kv_mib": "64", **options}
        engine = factory(describe(folder, device="cuda:0", dtype="bfloat16", slots=32, options=options), silent)
        assert isinstance(engine.runner, DeviceRunner), "the flash operation or the self-test failed: see the log"
        return engine

    return made


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_what_is_tested_here_is_what_serves(make: Make, attention: str) -> None:
    """Compiled kernels, either attention and graphs; what does not work is left out, and that is told."""
    from zmqrt.worker.engines.generate import sampling_kernels

    engine = make(attention=attention)
    runner = engine.runner

    assert engine.fallback == ""
    assert isinstance(runner, DeviceRunner)
    assert runner.recorded > 0
    assert "TRITON_INTERPRET" not in os.environ
    assert "Interpreted" not in type(sampling_kernels.draw).__name__


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_recorded_steps_draw_what_calls_do(make: Make, attention: str) -> None:
    """The same kernels in the same order: to the last bit, so to the same tokens."""
    requests = requests_of_all_kinds(24, vocabulary=256, tokens=40)

    recorded, called = (make(attention=attention, graphs=graphs) for graphs in ("1", "0"))
    assert tokens_of(recorded, requests) == tokens_of(called, requests)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("others", [0, 6, 31])
def test_deterministic_numbers(make: Make, others: int, attention: str) -> None:
    """Bitwise the same at batch 1, 7 and 32, and resumed."""
    engine = make(deterministic="1", chunk="64", attention=attention)
    request = ask(ticket=99, length=150, tokens=24, sampling=SamplingParams(temperature=1.0, seed=5, logprobs=20))
    alone = run(engine, [request])[99]

    beside = requests_of_all_kinds(others, vocabulary=256, tokens=30)
    together = run(engine, [*beside, request])[99]
    resumed = run(engine, [*beside, msgspec.structs.replace(request, resume_ids=alone.token_ids[:11])])[99]

    assert (together.token_ids, together.logprobs) == (alone.token_ids, alone.logprobs)
    assert (resumed.token_ids, resumed.logprobs) == (alone.token_ids[11:], alone.logprobs[11:])


def test_a_launch_waits_for_nothing(make: Make) -> None:
    """Neither a decode step, plain or shaped, nor a prompt, nor a sequence that begins."""
    engine = make()
    kinds = requests_of_all_kinds(8, vocabulary=256, tokens=30)
    right = engine.runner.launch

    def launch(step: Any) -> Any:
        with no_waiting():
            return right(step)

    engine.runner.launch = launch  # type: ignore[method-assign]

    assert len(tokens_of(engine, kinds)) == 8


def test_many_requests_leave_no_memory_behind(make: Make) -> None:
    """Allocated and reserved stay about as they are after the first round.

    Not to the byte: what another stream still uses is freed a little later, and so lies elsewhere each time.
    """
    engine = make()
    requests = requests_of_all_kinds(32, vocabulary=256, tokens=20)

    def used_mib() -> tuple[float, float]:
        tokens_of(engine, requests)
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated() / 2**20, torch.cuda.memory_reserved() / 2**20

    allocated, reserved = used_mib()
    rounds = [used_mib() for _ in range(10)]

    assert rounds[-1][0] < allocated + 1, rounds
    assert rounds[-1][1] < reserved + 64, rounds
