"""A GPU that is none: all that an engine does on one, call by call on the CPU, with faults where a test wants them.

Memory is what the fake says, a graph is a call that is made again, and attention is its definition.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from zmqrt.worker.engines.generate import device_runner, engine_maker, flash, hf_loader
from zmqrt.worker.engines.generate.cuda_graphs import RecordedStep
from zmqrt.worker.engines.generate.device_runner import DeviceRunner
from zmqrt.worker.engines.generate.engine_maker import EngineMaker
from zmqrt.worker.engines.generate.flash import plain
from zmqrt.worker.engines.generate.ops import TorchOps
from zmqrt.worker.engines.generate.slot_sampler import Sample

Broken = Callable[[int], Exception | None]
"""What the capture of that number (from 1 on) raises."""


class FakeRecorder:
    """Records by remembering the call; `spoil` changes what a replay leaves behind."""

    def __init__(
        self, *_of_cuda: object, broken: Broken | None = None, spoil: Callable[[Sample], None] | None = None
    ) -> None:
        self.count = 0
        self._broken = broken
        self._spoil = spoil

    def record(self, compute: Callable[[], Sample]) -> RecordedStep:
        """Call once, as a capture does, and call again at each replay, into the same tensors."""
        self.count += 1
        error = self._broken(self.count) if self._broken is not None else None
        if error is not None:
            raise error
        sample = compute()

        def replay() -> None:
            made = compute()
            for target, source in zip((sample.tokens, *sample.report), (made.tokens, *made.report), strict=True):
                target.copy_(source)
            if self._spoil is not None:
                self._spoil(sample)

        return RecordedStep(replay, sample)


class FakeMemory:
    """A device with so much free memory, of which steps take a part."""

    def __init__(self, free_bytes: int, most_bytes: int) -> None:
        self.free_bytes = free_bytes
        self._most_bytes = most_bytes
        self.releases = 0
        self.lost = False

    def is_lost(self) -> bool:
        """Whether everything fails."""
        return self.lost

    def watch(self) -> None:
        """Nothing to reset."""

    def most_bytes(self) -> int:
        """What steps took."""
        return self._most_bytes

    def release(self) -> None:
        """Collect, as the real one does."""
        self.releases += 1
        gc.collect()


class OtherOps(TorchOps):
    """Plain torch, under another name: it stands for Triton's kernels."""

    name = "triton"


@dataclass
class FakeGpu:
    """What happened on it."""

    memory: FakeMemory
    loads: int = 0
    alive_at_load: list[int] = field(default_factory=list[int])
    """How much of earlier engines was alive when a model was loaded: models, weights, pools, engines."""
    _watched: list[weakref.ref[Any]] = field(default_factory=list["weakref.ref[Any]"])

    def watch(self, *things: object) -> None:
        """Look for these at the next load."""
        self._watched += [weakref.ref(thing) for thing in things]

    def alive(self) -> int:
        """Count what is left."""
        return sum(ref() is not None for ref in self._watched)


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    free_bytes: int = 2 << 30,
    most_bytes: int = 1 << 20,
    recorder: Callable[..., FakeRecorder] = FakeRecorder,
    operations: TorchOps | None = None,
    operation: Any = plain,
) -> FakeGpu:
    """Let the engines of this test find a GPU where there is a CPU. `operations` stand for Triton's kernels."""
    gpu = FakeGpu(FakeMemory(free_bytes, most_bytes))
    load = hf_loader.load

    def loaded(*arguments: Any) -> Any:
        gpu.loads += 1
        gpu.alive_at_load.append(gpu.alive())
        made = replace(load(*arguments), is_cuda=True)
        gpu.watch(made.model, *made.model.parameters())
        return made

    def runner(*arguments: Any, **options: Any) -> DeviceRunner:
        if options["operation"] is flash.flash:
            options = {**options, "operation": operation}
        made = DeviceRunner(*arguments, **options)
        attention: Any = getattr(made, "_attention")  # noqa: B009 - what holds the memory, by no public name
        gpu.watch(made, attention, attention._pool)  # noqa: SLF001 - same
        return made

    def memory(_device: object) -> FakeMemory:
        return gpu.memory

    def nothing_against(*_: object) -> None:
        """Say nothing against flash attention."""

    monkeypatch.setattr(engine_maker, "load", loaded)
    monkeypatch.setattr(engine_maker, "GpuMemory", memory)
    monkeypatch.setattr(engine_maker, "DeviceRunner", runner)
    monkeypatch.setattr(flash, "why_not", nothing_against)
    monkeypatch.setattr(device_runner, "CudaRecorder", recorder)

    def chosen(maker: EngineMaker, _loaded: object) -> TorchOps:
        return operations if operations is not None and maker.way.has_kernels else TorchOps()

    monkeypatch.setattr(EngineMaker, "operations", chosen)
    return gpu


def out_of_memory() -> torch.OutOfMemoryError:
    """Make what CUDA's allocator raises."""
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
