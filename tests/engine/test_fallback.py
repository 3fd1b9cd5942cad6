"""What an engine does when something of a GPU fails while it loads: it runs with less, and says what and why."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from support.engines import describe, requests_of_all_kinds, tokens_of
from support.fake_gpu import FakeRecorder, OtherOps, out_of_memory, pretend
from support.tiny import silent, tiny_model
from zmqrt.worker.engines import generate
from zmqrt.worker.engines.base import CannotLoadError, StartAgainError
from zmqrt.worker.engines.generate import flash, self_test
from zmqrt.worker.engines.generate.attention import AttentionShape
from zmqrt.worker.engines.generate.cuda_graphs import RecordedStep
from zmqrt.worker.engines.generate.device_runner import DeviceRunner
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.engine_maker import EngineMaker
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.generate.flash import FlashAttention, Layout, Operation, plain
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.engines.generate.llama import LlamaDecoder
from zmqrt.worker.engines.generate.ops import TorchOps
from zmqrt.worker.engines.generate.sequence_table import RECORDED, SamplingMode
from zmqrt.worker.engines.generate.slot_sampler import Sample
from zmqrt.worker.engines.generate.torch_runner import TorchRunner
from zmqrt.worker.engines.generate.ways import Way

pytestmark = pytest.mark.integration
SLOTS = 4
SIZES = 3
"""Graphs of 1, 2 and 4 sequences."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model."""
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def right(model_path: Path) -> dict[int, list[int]]:
    """Have the CPU's own runner answer."""
    return tokens_of(factory(describe(model_path, slots=SLOTS), silent), requests())


def requests() -> list[Any]:
    """Make one of each kind, as many as there are slots."""
    return requests_of_all_kinds(SLOTS, vocabulary=256, tokens=8)


def make(model_path: Path, **options: str) -> GenerateEngine:
    """Load the tiny model."""
    return factory(describe(model_path, slots=SLOTS, options={"chunk": "64", **options}), silent)


def test_a_gpu_that_does_what_it_should_has_nothing_to_tell(
    model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every size in every mode is recorded, compared with calls, and used."""
    gpu = pretend(monkeypatch, operations=OtherOps())
    engine = make(model_path)

    assert isinstance(engine.runner, DeviceRunner)
    assert engine.runner.recorded == SIZES * len(RECORDED)
    assert (engine.fallback, gpu.loads) == ("", 1)
    assert tokens_of(engine, requests()) == right


SLOW = [pytest.param(what, marks=pytest.mark.slow) for what in ("graphs", "path", "flash")]


@pytest.mark.parametrize("what", ["kernels", *SLOW])
def test_what_fails_the_self_test_is_left_out_step_by_step(
    what: str, model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels, then graphs, then the decoder, then the operation; each time nothing of the one before is alive."""
    blamed = {"kernels": 1, "graphs": 2, "path": 3, "flash": 4}[what]
    recorder = functools.partial(FakeRecorder, spoil=spoiling_late() if what == "graphs" else None)
    gpu = pretend(monkeypatch, operations=OtherOps(), recorder=recorder)
    _break(monkeypatch, what)
    engine = make(model_path)

    assert gpu.loads == 1 + blamed
    assert gpu.alive_at_load == [0] * (1 + blamed)
    assert engine.fallback.count("left out") == blamed
    for words in ("Triton's kernels", "CUDA graphs", "the path 'fused'", "flash attention")[:blamed]:
        assert f"{words} left out: the self-test is off by" in engine.fallback
    assert isinstance(engine.runner, TorchRunner if what == "flash" else DeviceRunner)
    monkeypatch.undo()
    assert tokens_of(engine, requests()) == right


@dataclass(frozen=True)
class OwnAttention:
    """It stands for the kernels of `split_kv.py`, which CPU builds of torch have no Triton for."""

    reason: str | None = None
    factor: float = 1.0
    made: list[tuple[int, int, bool]] = field(default_factory=list[tuple[int, int, bool]])

    def why_not(self, *_: object) -> str | None:
        """Say what its own test says."""
        return self.reason

    def SplitKvAttention(  # noqa: N802 - the name of a class
        self, _shape: object, sequences: int, tokens: int, *, device: object, is_deterministic: bool
    ) -> Operation:
        """Attend by the definition, or some way off."""
        self.made.append((sequences, tokens, is_deterministic))

        def attend(query: Any, keys: Any, values: Any, layout: Any, scale: float | None) -> torch.Tensor:
            return plain(query, keys, values, layout, scale) * self.factor

        return attend


def test_attention_of_our_own_is_used_where_it_is_asked_for(
    model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the room of each pool that is made; unasked it is torch's, and without kernels too."""
    pretend(monkeypatch)
    own = OwnAttention()
    monkeypatch.setattr(generate, "split_kv", own, raising=False)

    for options in ({}, {"attention": "triton", "kernels": "0"}):
        assert make(model_path, graphs="0", **options).fallback == ""
        assert own.made == []
    engine = make(model_path, attention="triton")
    assert (engine.fallback, own.made[-1]) == ("", (SLOTS, engine.capacity().kv_tokens, False))
    assert tokens_of(engine, requests()) == right
    make(model_path, attention="triton", deterministic="1", graphs="0")
    assert own.made[-1][2]


def test_attention_of_our_own_that_fails_is_left_out(
    model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own test at once; by the engine's the model is loaded anew. Each time it is told."""
    gpu = pretend(monkeypatch)
    for own in (OwnAttention("it is off by 3"), OwnAttention(factor=0.5)):
        monkeypatch.setattr(generate, "split_kv", own, raising=False)
        engine = make(model_path, attention="triton", graphs="0")
        assert tokens_of(engine, requests()) == right
        by_engine = engine.fallback.startswith("Triton's kernels left out: the self-test is off by")
        assert by_engine or engine.fallback == "Triton's attention is not used: it is off by 3"
    assert gpu.loads == 1 + 2


def test_kernels_that_draw_otherwise_are_left_out_alone_and_named(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that work are used; without any the reason is another."""
    loaded: Any = SimpleNamespace(is_cuda=True, model=SimpleNamespace(dtype=torch.bfloat16, device="cuda"))
    notes: list[str] = []

    def note(_self: object, words: str) -> None:
        notes.append(words)

    monkeypatch.setattr(EngineMaker, "_note", note)
    for works, why_not in ((OtherOps(), "draw is off by 1"), (TorchOps(), "gate is off by 2"), (OtherOps(), None)):
        own = SimpleNamespace(KernelOps=OtherOps, working=Mock(return_value=(works, why_not)))
        monkeypatch.setattr(generate, "kernel_ops", own, raising=False)
        assert EngineMaker(describe(model_path), silent, Way("auto")).operations(loaded) is works

    uses = ("used to draw tokens: draw is off by 1", "used: gate is off by 2")
    assert notes == [f"Triton's kernels are not {words}" for words in uses]


def test_attention_that_there_is_not(model_path: Path) -> None:
    """The error names what there is."""
    with pytest.raises(CannotLoadError, match="attention=fa3: there are flash, triton"):
        make(model_path, attention="fa3")


@pytest.mark.slow
@pytest.mark.parametrize("is_lost", [False, True])
def test_a_kernel_that_fails_is_left_out_by_this_process_or_the_next(
    *, is_lost: bool, model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An illegal access costs the process its device: what it asks of the next one says what to leave out, and why."""

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    gpu = pretend(monkeypatch, operations=OtherOps())
    monkeypatch.setattr(OtherOps, "gate", fail)
    gpu.memory.lost = is_lost
    if is_lost:
        with pytest.raises(StartAgainError, match="illegal memory access") as caught:
            make(model_path)
        assert caught.value.options["left_out"] == "kernels"
        gpu.memory.lost = False
        engine = make(model_path, **caught.value.options)
    else:
        engine = make(model_path)

    assert engine.fallback.startswith("Triton's kernels left out: a first step failed: RuntimeError: CUDA error")
    assert engine.fallback.count("left out") == 1
    assert gpu.alive_at_load == [0, 0]
    assert tokens_of(engine, requests()) == right


@pytest.mark.parametrize("what", ["kernels", "flash"])
def test_what_is_tried_by_itself_may_cost_the_device_too(
    what: str, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To go on with less in this process would fail at everything else, and blame that."""
    operations = EngineMaker.operations
    gpu = pretend(monkeypatch)
    monkeypatch.setattr(EngineMaker, "operations", operations)

    def tried(*_: object) -> str:
        gpu.memory.lost = True
        return "AcceleratorError: CUDA error: misaligned address"

    def working(*_: object) -> tuple[TorchOps, str | None]:
        return TorchOps(), tried() if what == "kernels" else None

    kernels = SimpleNamespace(working=working, KernelOps=OtherOps)
    if what == "flash":
        monkeypatch.setattr(flash, "why_not", tried)
    monkeypatch.setattr(generate, "kernel_ops", kernels, raising=False)
    with pytest.raises(StartAgainError, match="left out: AcceleratorError: CUDA error: misaligned") as caught:
        make(model_path)

    assert caught.value.options["left_out"] == what


def spoiling_late() -> Callable[[Sample], None]:
    """Spoil what a graph reports after some replays, so that comparing it with calls finds nothing."""
    replays: Counter[int] = Counter()
    seen: list[Sample] = []  # kept, or an id would be that of a later one

    def spoil(sample: Sample) -> None:
        seen.append(sample)
        replays[id(sample)] += 1
        if sample.report and replays[id(sample)] > 3:
            sample.report[1].fill_(-50.0)

    return spoil


def _break(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Let one thing compute what is wrong."""
    owner, name = {
        "kernels": (OtherOps, "gate"),
        "graphs": (OtherOps, ""),
        "path": (LlamaDecoder, "forward"),
        "flash": (FlashAttention, "attend"),
    }[what]
    if not name:
        return
    right: Any = getattr(owner, name)

    def wrong(self: Any, *arguments: Any) -> torch.Tensor:
        half: torch.Tensor = right(self, *arguments) * 0.5
        return half

    monkeypatch.setattr(owner, name, wrong)


# --- graphs ----------------------------------------------------------------------------------------------------------


def recorded(engine: GenerateEngine) -> int:
    """Count the graphs of an engine."""
    assert isinstance(engine.runner, DeviceRunner)
    return engine.runner.recorded


def test_a_capture_that_fails_costs_that_size_in_that_mode(
    model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The plain ones of all sizes are there already; what is missing is computed call by call, and named."""
    first_shaped = SIZES + 1
    fail = RuntimeError("operation not permitted when stream is capturing")
    broken = {first_shaped: fail}.get
    pretend(monkeypatch, recorder=functools.partial(FakeRecorder, broken=broken))
    engine = make(model_path)

    assert recorded(engine) == SIZES * len(RECORDED) - 1
    assert f"batch {SLOTS}, cut, up to 512 tokens: RuntimeError: operation not permitted" in caplog.text
    assert "1 kinds of decode steps are not recorded as graphs (batch 4, cut" in engine.fallback
    assert tokens_of(engine, requests()) == right


@pytest.mark.slow
def test_no_memory_for_a_graph_ends_recording_and_keeps_the_plain_ones(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one would find none either."""
    made: list[FakeRecorder] = []

    def recorder(*_: object) -> FakeRecorder:
        made.append(FakeRecorder(broken=lambda number: out_of_memory() if number > SIZES else None))
        return made[0]

    pretend(monkeypatch, recorder=recorder)
    engine = make(model_path)

    assert recorded(engine) == SIZES
    assert made[0].count == SIZES + 1
    assert "OutOfMemoryError" in engine.fallback


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a report", "nothing"])
def test_a_graph_that_says_something_else_costs_its_mode(
    what: str, model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reports otherwise loses its own mode; those that do not move at all go, and calls take over."""

    def spoil(sample: Sample) -> None:
        if sample.report:
            sample.report[1].fill_(-50.0)

    class Stale(FakeRecorder):
        def record(self, compute: Callable[[], Sample]) -> Any:
            return RecordedStep(lambda: None, super().record(compute).sample)

    recorder = functools.partial(FakeRecorder, spoil=spoil) if what == "a report" else Stale
    pretend(monkeypatch, recorder=recorder)
    engine = make(model_path)

    assert recorded(engine) == (SIZES * (len(RECORDED) - 1) if what == "a report" else 0)
    words = "its log probabilities are not those" if what == "a report" else "it leaves other lengths"
    assert words in engine.fallback
    assert tokens_of(engine, requests()) == right
    assert SamplingMode.REPORTED in RECORDED[-1]


@pytest.mark.slow
def test_a_graph_that_reads_elsewhere_is_found(
    model_path: Path, right: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attention begins at the start of the pool, as if it had kept the offsets of when it was recorded."""
    is_replaying = False

    class Misled(FakeRecorder):
        def record(self, compute: Callable[[], Sample]) -> Any:
            step = super().record(compute)

            def replay() -> None:
                nonlocal is_replaying
                is_replaying = True
                step.replay()
                is_replaying = False

            return RecordedStep(replay, step.sample)

    def elsewhere(query: Any, keys: Any, values: Any, layout: Layout, scale: Any) -> torch.Tensor:
        if is_replaying:
            layout = replace(layout, starts=layout.starts * 0)
        return plain(query, keys, values, layout, scale)

    pretend(monkeypatch, recorder=Misled, operation=elsewhere)
    engine = make(model_path)

    assert recorded(engine) == 0
    assert tokens_of(engine, requests()) == right


@pytest.mark.slow
def test_nothing_is_collected_while_a_step_is_recorded(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What frees memory of a device breaks the capture that is under way."""
    seen: list[bool] = []

    class Looking(FakeRecorder):
        def record(self, compute: Callable[[], Sample]) -> Any:
            seen.append(gc.isenabled())
            return super().record(compute)

    pretend(monkeypatch, recorder=Looking)
    make(model_path)

    assert set(seen) == {False}
    assert gc.isenabled()


# --- how much at once ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pool_gets_what_a_step_leaves(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that was seen to take more leaves less, and nothing of what was free is guessed away."""
    free = 600 << 20
    tokens: list[int] = []
    for most in (1 << 20, 101 << 20):
        with monkeypatch.context() as context:
            gpu = pretend(context, free_bytes=free, most_bytes=most)
            engine = factory(describe(model_path, max_model_len=0, slots=128, options={"graphs": "0"}), silent)
            tokens.append(engine.capacity().kv_tokens)
            assert gpu.memory.releases == 1
    per_token = AttentionShape.of(engine_config(model_path)).bytes_per_token(torch.float32)

    assert tokens[0] - tokens[1] == pytest.approx(1.1 * (100 << 20) / per_token, abs=2)


def test_the_first_kernels_of_a_device_are_watched(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are of transformers' code, for comparison: if the device hangs there, that is no slow disk any more."""
    told: list[str] = []

    def compute(*_: object) -> None:
        raise CannotLoadError("this far")

    pretend(monkeypatch)
    monkeypatch.setattr(self_test, "Reference", compute)
    with pytest.raises(CannotLoadError, match="this far"):
        factory(describe(model_path), lambda phase, _percent: told.append(phase))

    assert told[-1] == "warming"


def engine_config(model_path: Path) -> Any:
    """Read the configuration of the model."""
    return untyped("transformers").AutoConfig.from_pretrained(model_path)


@pytest.mark.slow
def test_a_piece_too_large_for_memory_is_halved(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it fits; nothing is failed by that, and no step is ever larger."""
    forward = LlamaDecoder.forward
    told, refused = list[str](), set[int]()

    def scarce(self: LlamaDecoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(ids) > 1100:
            refused.add(len(told))
            raise out_of_memory()
        return forward(self, ids, *rest)

    monkeypatch.setattr(LlamaDecoder, "forward", scarce)
    pretend(monkeypatch)
    spec = describe(model_path, slots=8, options={"graphs": "0"})
    engine = factory(spec, lambda phase, _percent: told.append(phase))

    assert engine.limits.idle_chunk_tokens == 1024
    assert len(refused) == 2, "each try is a step of warming up"
    assert 256 <= engine.limits.chunk_tokens <= 1024
    assert engine.fallback == ""
