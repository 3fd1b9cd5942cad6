"""What the first run on a GPU measures, with a tiny model on a CPU."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import attention_times
import engine_kill
import gpu_items
import pytest
from decode_steps import SHAPES, RandomModel, Running, StepTime, TooSlowError, Workload, measure
from gpu_first_run import items_for

from zmqrt.worker.engines.generate.attention import AttentionShape
from zmqrt.worker.engines.generate.schedule import SchedulerLimits

pytestmark = pytest.mark.integration
PROMPT = 8
STEPS = 2
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def model() -> RandomModel:
    """The tiny shape, random."""
    return RandomModel("tiny", "cpu", context=256)


@contextmanager
def running(model: RandomModel, batch: int, context: int) -> Generator[Running]:
    """Run an engine with so many slots."""
    limits = SchedulerLimits(slots=batch, context=context, chunk_tokens=512, depth=2)
    with model.running(limits) as found:
        yield found


@pytest.mark.parametrize(("device", "sizes"), [("cpu", gpu_items.TINY), ("cuda:0", gpu_items.FULL)])
def test_every_item_that_is_asked_for_is_there(device: str, sizes: gpu_items.Sizes) -> None:
    """With the shapes that it names."""
    names = items_for(device)

    assert all(callable(gpu_items.Items(device, sizes).find(name)) for name in names)
    assert {name.partition("-")[2] for name in names if name.startswith("steps")} == set(sizes.shapes)
    assert {*sizes.shapes, sizes.shape_of_streams} <= SHAPES.keys()


def test_a_large_batch_decodes_together_for_as_long_as_it_is_measured(model: RandomModel) -> None:
    """The first of 40 sequences still runs when the last one begins, and small batches after it have room again."""
    largest = Workload(40, PROMPT, STEPS)
    with running(model, largest.batch, largest.context) as found:
        times: list[StepTime] = []
        for batch, kind in ((40, "plain"), (1, "plain"), (3, "shaped")):
            workload = Workload(batch, PROMPT, STEPS, kind)
            times.append(measure(model, found, workload, bytes_per_s=1e9, limit_s=LIMIT_S))
            found.drop(batch, LIMIT_S)

    assert [one.batch for one in times] == [40, 1, 3]
    assert all(0 < one.host_ms <= one.step_ms and math.isfinite(one.share_of_roofline) for one in times)


def test_sequences_that_end_too_early_are_told_of_and_not_waited_for(model: RandomModel) -> None:
    """Steps in which all draw would never come."""
    workload = Workload(40, PROMPT, STEPS)
    with running(model, workload.batch, PROMPT + 30) as found, pytest.raises(TooSlowError, match="sequence 0 ended"):
        measure(model, found, workload, bytes_per_s=1e9, limit_s=LIMIT_S)


def test_a_device_that_hangs_is_not_waited_for_for_ever(model: RandomModel) -> None:
    """A deadline ends it."""
    workload = Workload(2, PROMPT, STEPS)
    with running(model, workload.batch, workload.context) as found:
        found.engine.poll = lambda timeout_s: []  # type: ignore[method-assign]

        with pytest.raises(TooSlowError, match="in time"):
            found.fill(workload, limit_s=0.0)


def test_a_profile_tells_what_a_step_has_the_device_do(model: RandomModel) -> None:
    """The same number of calls in each step, so a whole number of them."""
    workload = Workload(2, PROMPT, STEPS)
    with running(model, workload.batch, workload.context) as found:
        found.fill(workload, LIMIT_S)
        profile = found.profile(LIMIT_S)
        found.drop(workload.batch, LIMIT_S)

    assert profile["nodes_a_step"] > 0
    assert profile["kernels"]["aten::linear"][0] == 9  # four in each of two layers, and the head


def test_attention_is_timed_for_each_batch_length_and_bound() -> None:
    """Bounds that are shorter than a sequence are none."""
    shape = AttentionShape(1, 4, 2, 32)
    words = {"batches": (1, 2), "lengths": (4, 20), "bounds": (10, 30)}

    found = dict(attention_times.measure(shape, "cpu", bytes_per_s=1e9, **words))

    assert set(found.pop("left out")) == {"flash", "triton"}
    assert len(found) == 6
    assert all(one["us"] > 0 and one["share_of_roofline"] > 0 for one in found.values())


def test_streams_are_judged_by_their_whole_answers() -> None:
    """One that ended before the kill was not cut; one with another token went on, but not exactly."""
    requests = engine_kill.make_requests(4, tokens=3)
    whole = {0: [1, 2, 3], 1: [4, 5, 6], 2: [7, 8, 9], 3: [1, 1, 1]}
    delivered = {0: [1, 2, 3], 1: [4], 2: [7, 7], 3: [1]}
    cut = {1: [4, 5, 6], 2: [7, 7, 9], 3: [1, 1, 2]}

    found = engine_kill.judge(requests, whole, delivered, cut)

    assert (found["streams"], found["cut"], found["whole_length"]) == (4, 3, 3)
    assert (found["exact"], found["exact_sampled"], found["exact_greedy"]) == (1, 1, 0)
    assert found["exact_until_the_kill"] == 2
