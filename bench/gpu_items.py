"""The process that measures for `gpu_first_run.py`: `gpu_items.py DEVICE FD ITEM…`.

What it finds it writes to FD at once, one JSON object a line. It ends with the first item that fails: a device that has
failed once may do so for ever, and the next item is owed a fresh start.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import attention_times
import attentions
import engine_kill
import torch
from decode_steps import (
    SAMPLING,
    RandomModel,
    Running,
    Workload,
    best_operations,
    build,
    copied_bytes_per_s,
    dtype_for,
    measure,
    use,
)

from zmqrt.protocol.parent_watch import watch_parent
from zmqrt.worker.engines.generate import flash
from zmqrt.worker.engines.generate.attention import AttentionShape
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.engines.generate.ops import TorchOps
from zmqrt.worker.engines.generate.schedule import SchedulerLimits

ROOT: Final = Path(__file__).resolve().parent.parent
_CHUNK: Final = 512
_DIFFERENCE_SIZES: Final = (8, 6144)
"""Sequences, and tokens that they have together, in `flash.difference`."""
_ERROR_LINES: Final = 12
_ERROR_CHARACTERS: Final = 1000
Figures = Iterator[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large what is measured is."""

    shape_of_streams: str
    shapes: tuple[str, ...]
    heads: tuple[tuple[int, int, int], ...]
    """Heads, kv heads, size of a head: llama 8B, 1B, and one without groups."""
    batches: tuple[int, ...]
    shaped_batches: tuple[int, ...]
    prompt: int
    steps: int
    attention_batches: tuple[int, ...]
    lengths: tuple[int, ...]
    bounds: tuple[int, ...]
    streams: int
    stream_tokens: int
    limit_s: float
    """For one figure."""


FULL: Final = Sizes(
    shape_of_streams="1b",
    shapes=("1b", "8b"),
    heads=((32, 8, 128), (32, 8, 64), (32, 32, 128)),
    batches=(1, 8, 32, 64, 128),
    shaped_batches=(1, 64),
    prompt=1024,
    steps=64,
    attention_batches=(1, 8, 32, 64),
    lengths=(1024, 4096),
    bounds=(1264, 8192, 131_072),
    streams=100,
    stream_tokens=96,
    limit_s=40.0,
)
TINY: Final = Sizes(
    shape_of_streams="tiny",
    shapes=("tiny",),
    heads=((4, 2, 32),),
    batches=(1, 3),
    shaped_batches=(1, 3),
    prompt=16,
    steps=3,
    attention_batches=(2,),
    lengths=(40,),
    bounds=(64,),
    streams=6,
    stream_tokens=12,
    limit_s=60.0,
)


class Items:
    """What there is to measure on one device."""

    def __init__(self, device: str, sizes: Sizes) -> None:
        self._device = device
        self._sizes = sizes
        self._is_cuda = device.startswith("cuda")
        self._bytes_per_s = 0.0

    def find(self, name: str) -> Callable[[], Figures]:
        """Return the item of that name."""
        kind, _, shape = name.partition("-")
        if kind == "steps":
            return lambda: self.steps(shape)
        found: dict[str, Callable[[], Figures]] = {
            "machine": self.machine,
            "differences": self.differences,
            "attention": self.attention,
            "tests": self.tests,
            "kill": self.kill,
            "continuous": self.continuous,
        }
        return found[name]

    def machine(self) -> Figures:
        """Tell what it is, and how fast it copies."""
        yield "versions", {name: _version(name) for name in ("torch", "triton", "transformers", "msgspec", "zmqrt")}
        if self._is_cuda:
            properties: Any = untyped("torch").cuda.get_device_properties(self._device)
            yield (
                "device",
                {
                    "name": properties.name,
                    "capability": f"{properties.major}.{properties.minor}",
                    "memory_gib": properties.total_memory / 2**30,
                    "multiprocessors": properties.multi_processor_count,
                    "cuda": torch.version.cuda,
                },
            )
        else:
            yield "device", {"name": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        yield "interpreter", os.environ.get("TRITON_INTERPRET", "off")
        yield "copy", {"tb_per_s": self._rate() / 1e12}

    def differences(self) -> Figures:
        """Tell how far attention and kernels are from plain arithmetic."""
        dtype = dtype_for(self._device)
        kinds = (("decode", False, False), ("deterministic", False, True), ("prompt", True, False))
        for heads in self._sizes.heads:
            shape = AttentionShape(1, *heads)
            makers, why_not = attentions.find(shape, dtype, self._device)
            for name, make in makers.items():
                for kind, is_piece, is_deterministic in kinds:
                    operation = make(*_DIFFERENCE_SIZES, is_deterministic)
                    off = flash.difference(shape, dtype, self._device, is_piece=is_piece, operation=operation)
                    yield f"{name} {heads}, {kind}", off
            yield f"left out {heads}", why_not
        operations, why_no_kernels = best_operations(dtype, self._device)
        yield "kernels", why_no_kernels or operations.name
        if self._is_cuda:
            from zmqrt.worker.engines.generate import kernel_ops

            for name, off in kernel_ops.differences(dtype, self._device).items():
                yield f"kernel {name}", off

    def attention(self) -> Figures:
        """Measure how long the attention of a decode step takes by itself."""
        sizes = self._sizes
        return attention_times.measure(
            AttentionShape(1, *sizes.heads[0]),
            self._device,
            batches=sizes.attention_batches,
            lengths=sizes.lengths,
            bounds=sizes.bounds,
            bytes_per_s=self._rate(),
        )

    def steps(self, shape: str) -> Figures:
        """Measure how long decode steps take, of all batch sizes, plain and shaped; and what the device does in one.

        What watches a device may go on to cost it time, so that comes last.
        """
        sizes = self._sizes
        context = Workload(max(sizes.batches), sizes.prompt, sizes.steps).context
        model = RandomModel(shape, self._device, context)
        yield "way", model.way
        first, *others = model.attentions
        yield from self._timed(model, first, SAMPLING)
        yield from self._without(model)
        for attention in others:
            yield from self._timed(model, attention, ["plain"])
        for attention, kinds in [(first, ["plain", "cut", "shaped"]), *((one, ["plain"]) for one in others)]:
            with model.running(_limits(max(sizes.shaped_batches), context), attention=attention) as running:
                for kind, batch in itertools.product(kinds, sizes.shaped_batches):
                    found = self._profile(running, Workload(batch, sizes.prompt, 0, kind))
                    yield f"device, {attention}, {kind}, batch {batch}", found

    def _timed(self, model: RandomModel, attention: str, kinds: Iterable[str]) -> Figures:
        sizes = self._sizes
        context = Workload(max(sizes.batches), sizes.prompt, sizes.steps).context
        with model.running(_limits(max(sizes.batches), context), attention=attention) as running:
            yield f"{attention}, recording", running.recorded
            for kind in kinds:
                for batch in sizes.batches if kind == "plain" else sizes.shaped_batches:
                    workload = Workload(batch, sizes.prompt, sizes.steps, kind)
                    yield f"{attention}, {kind}, batch {batch}", self._measured(model, running, workload)
                    running.drop(batch, sizes.limit_s)

    def _measured(self, model: RandomModel, running: Running, workload: Workload) -> dict[str, Any]:
        found = measure(model, running, workload, bytes_per_s=self._rate(), limit_s=self._sizes.limit_s)
        return dataclasses.asdict(found)

    def _profile(self, running: Running, workload: Workload) -> dict[str, Any]:
        """Tell what the device does in a step."""
        running.fill(workload, self._sizes.limit_s)
        try:
            found = running.profile(self._sizes.limit_s)
        except (RuntimeError, AssertionError) as error:  # some machines let nobody watch
            found = {"error": str(error)[:_ERROR_CHARACTERS]}
        running.drop(workload.batch, self._sizes.limit_s)
        return found

    def _without(self, model: RandomModel) -> Figures:
        """Measure what graphs and kernels gain, at the smallest batch."""
        workload = Workload(min(self._sizes.batches), self._sizes.prompt, self._sizes.steps)
        limits = _limits(workload.batch, workload.context)
        with model.running(limits, graphs=False) as running:
            yield "without graphs", self._measured(model, running, workload)
        operations, model.decoder.operations = model.decoder.operations, TorchOps()
        with model.running(limits, operations=TorchOps()) as running:
            yield "without kernels", self._measured(model, running, workload)
        model.decoder.operations = operations

    def tests(self) -> Figures:
        """Run the tests that need a GPU."""
        words = ("tests/engine/test_gpu.py", "-q", "-rfE", "-p", "no:cacheprovider", "-o", "filterwarnings=default")
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *words, "--timeout", "300"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        yield "pytest", {"exit_code": run.returncode, "end": (run.stdout + run.stderr).splitlines()[-_ERROR_LINES:]}
        if run.returncode:
            raise RuntimeError(f"pytest ended with {run.returncode}")

    def kill(self) -> Figures:
        """Count the streams that go on exactly after their engine was killed."""
        sizes = self._sizes
        return engine_kill.measure(
            sizes.shape_of_streams,
            self._device,
            streams=sizes.streams,
            tokens=sizes.stream_tokens,
            limit_s=sizes.limit_s,
        )

    def continuous(self) -> Figures:
        """Measure the steps of transformers' own continuous batching, with the same weights."""
        transformers = untyped("transformers")
        more: dict[str, Any] = {}
        if not self._is_cuda:  # it would make its pool as large as the memory of the machine
            more["continuous_batching_config"] = transformers.ContinuousBatchingConfig(
                num_blocks=16, max_batch_tokens=128
            )
        sizes = self._sizes
        for shape in sizes.shapes:
            model = build(shape, self._device, sizes.prompt + sizes.steps)
            for batch in sizes.batches:
                vocabulary = int(model.config.vocab_size)
                prompts = [
                    [(31 * at + 7 * number) % vocabulary for at in range(sizes.prompt)] for number in range(batch)
                ]
                config = transformers.GenerationConfig(
                    max_new_tokens=sizes.steps + 2, do_sample=True, temperature=1.0, eos_token_id=-1, pad_token_id=0
                )
                answers = model.generate_batch(prompts, generation_config=config, record_timestamps=True, **more)
                if errors := [one.error for one in answers.values() if one.error] or len(answers) < batch:
                    raise RuntimeError(f"{len(answers)} of {batch} answers: {errors}")
                yield f"{shape}, batch {batch}", _pace([one.timestamps for one in answers.values()])
            del model
            self.let_go()

    def let_go(self) -> None:
        """Give memory back."""
        gc.collect()
        if self._is_cuda:
            torch.cuda.empty_cache()

    def _rate(self) -> float:
        if not self._bytes_per_s:
            self._bytes_per_s = copied_bytes_per_s(self._device)
            self.let_go()
        return self._bytes_per_s


def _limits(slots: int, context: int) -> SchedulerLimits:
    return SchedulerLimits(slots=slots, context=context, chunk_tokens=_CHUNK, idle_chunk_tokens=_CHUNK, depth=2)


def _pace(times: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the median time of a step and the rate while all sequences get tokens, from the time of each token."""
    begin, end = max(one[0] for one in times), min(one[-1] for one in times)
    gaps = [
        later - earlier
        for one in times
        for earlier, later in itertools.pairwise(one)
        if begin <= earlier <= later <= end
    ]
    step_s = statistics.median(gaps)
    return {"step_ms": 1000 * step_s, "tokens_per_s": len(times) / step_s}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def main() -> None:
    """Measure, and tell."""
    device, writing, *names = sys.argv[1:]
    watch_parent()
    use(device)
    items = Items(device, FULL if device.startswith("cuda") else TINY)

    def tell(event: str, **fields: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        os.write(int(writing), json.dumps({"event": event, **fields}).encode() + b"\n")

    for name in names:
        tell("begin")
        try:
            for figure, value in items.find(name)():
                tell("figure", name=figure, value=value)
        except Exception as error:  # noqa: BLE001 - whatever a device that nobody knows does
            traceback.print_exc()
            tell("failed", error=f"{type(error).__name__}: {' '.join(str(error).split())[:_ERROR_CHARACTERS]}")
            sys.exit(1)
        tell("done")
        items.let_go()


if __name__ == "__main__":
    main()
