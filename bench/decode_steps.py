"""Decode steps of the `generate` engine over random weights in shapes of real models, beside what memory allows.

At small batches a step has to read every weight once, and the keys and values of every sequence once: that many bytes
over the bandwidth that a plain copy reaches in the same run is the shortest a step can take, and the share of it that a
step gets is what counts. Random weights speak nonsense; they are as fast as others.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import attentions
import msgspec
import torch

from zmqrt.worker.engines.base import SamplingParams, TokenEvent, TokenRequest
from zmqrt.worker.engines.generate.device_runner import DeviceRunner
from zmqrt.worker.engines.generate.engine import GenerateEngine
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.engines.generate.llama import LlamaDecoder
from zmqrt.worker.engines.generate.ops import TorchOps
from zmqrt.worker.engines.generate.schedule import EngineStep, SchedulerLimits, SequenceStep

SHAPES: Final = {
    # vocabulary, width, MLP width, layers, heads, kv heads, size of a head, whether embedding and head are one
    "tiny": (512, 128, 352, 2, 4, 2, 32, True),
    "1b": (128_256, 2048, 8192, 16, 32, 8, 64, True),
    "8b": (128_256, 4096, 14_336, 32, 32, 8, 128, False),
}
SAMPLING: Final = {
    "plain": SamplingParams(temperature=1.0),
    "cut": SamplingParams(temperature=1.0, top_p=0.9, top_k=50),
    "cold": SamplingParams(temperature=0.02, top_p=0.9, top_k=50),
    "shaped": SamplingParams(temperature=1.0, top_p=0.9, top_k=50, repetition_penalty=1.1, presence_penalty=0.1),
}
"""How tokens are drawn: by temperature alone; from the likeliest; so cold that nearly all lie too low ever to be drawn;
with penalties too. Logits of a random model spread by one or so, those of a trained one by more: 0.02 is its 0.1."""
WARM_UP_STEPS: Final = 12
PROFILED_STEPS: Final = 3
_MARGIN_TOKENS: Final = 16
_COPIES: Final = 20
_LISTED_KERNELS: Final = 40


class TooSlowError(Exception):
    """What was waited for did not come in time."""


def dtype_for(device: str) -> torch.dtype:
    """Return the type of what is measured there."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def use(device: str) -> None:
    """Make it the device of what names none."""
    if device.startswith("cuda"):
        untyped("torch").cuda.set_device(device)


def settle(device: str) -> None:
    """Wait until the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def copied_bytes_per_s(device: str) -> float:
    """Measure how fast memory is copied: what is read and what is written both count."""
    size = (2 << 30) if device.startswith("cuda") else (16 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(_COPIES):
        settle(device)
        began = time.perf_counter()
        target.copy_(source)
        settle(device)
        times.append(time.perf_counter() - began)
    return 2 * size / statistics.median(times)


def build(shape: str, device: str, context: int) -> Any:  # noqa: ANN401 - transformers' models are untyped
    """Make a random model where it will run; the same one each time."""
    transformers = untyped("transformers")
    vocabulary, width, mlp, layers, heads, kv_heads, size, is_tied = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=size,
        max_position_embeddings=max(8192, 2 * context),
        tie_word_embeddings=is_tied,
        rope_theta=500_000.0,
        attn_implementation="sdpa",
    )
    untyped("torch").manual_seed(1)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype_for(device))
    model.generation_config.eos_token_id = None
    return model.eval()


def best_operations(dtype: torch.dtype, device: str) -> tuple[TorchOps, str]:
    """Return the operations that an engine would take on this device, and why not the kernels."""
    if not device.startswith("cuda"):
        return TorchOps(), "there is no GPU"
    try:
        from zmqrt.worker.engines.generate import kernel_ops
    except ImportError as error:
        return TorchOps(), str(error)
    operations, why_not = kernel_ops.working(dtype, device)
    return operations, why_not or ""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: how many sequences, the tokens each has before, how many steps; `kind` as in `SAMPLING`."""

    batch: int
    prompt: int
    steps: int
    kind: str = "plain"

    @property
    def context(self) -> int:
        """How long a sequence has to be able to get, so that the first still runs when the last is measured.

        About a step passes between two that begin, at worst two; warm-up and profile, and what is under way then.
        """
        return self.prompt + 2 * self.batch + 4 * WARM_UP_STEPS + self.steps + _MARGIN_TOKENS


@dataclass(frozen=True, slots=True)
class StepTime:
    """Decode steps of one batch size, medians. `host_ms` is what the host needs to launch one."""

    batch: int
    step_ms: float
    host_ms: float
    roofline_ms: float
    share_of_roofline: float
    tokens_per_s: float


class RandomModel:
    """A random model, run as an engine would run it here."""

    def __init__(self, shape: str, device: str, context: int) -> None:
        model = build(shape, device, context)
        self.device = device
        self.weight_bytes = sum(one.numel() * one.element_size() for one in model.parameters())
        if not SHAPES[shape][-1]:  # of the embedding a step reads a few rows; the head is another matrix
            self.weight_bytes -= model.get_input_embeddings().weight.numel() * model.dtype.itemsize
        self.operations, why_no_kernels = best_operations(model.dtype, device)
        self.decoder = LlamaDecoder(model, self.operations)
        self.kv_bytes_per_token = self.decoder.shape.bytes_per_token(model.dtype)
        self.attentions, why_not = attentions.find(self.decoder.shape, model.dtype, device)
        self.way = {
            "kernels": why_no_kernels or self.operations.name,
            "attention": " and ".join(self.attentions),
            "left_out": why_not,
        }

    @contextmanager
    def running(
        self,
        limits: SchedulerLimits,
        *,
        attention: str = "",
        graphs: bool = True,
        operations: TorchOps | None = None,
    ) -> Generator[Running]:
        """Run an engine with room for all that these limits allow, with this attention, else the first that works."""
        kv_tokens = limits.slots * (limits.context + 1)
        make = self.attentions[attention or next(iter(self.attentions))]
        runner = DeviceRunner(
            self.decoder,
            kv_tokens,
            limits,
            dtype=self.decoder.dtype,
            device=self.device,
            operations=operations or self.operations,
            operation=make(limits.slots, kv_tokens, limits.is_deterministic),
        )
        began = time.perf_counter()
        lost = runner.record(lambda _percent: None) if graphs and self.device.startswith("cuda") else []
        recorded = {"graphs": runner.recorded, "s": time.perf_counter() - began, "lost": lost}
        engine = GenerateEngine(runner, kv_tokens=kv_tokens, limits=limits)
        try:
            yield Running(engine, runner, self.device, recorded)
        finally:
            settle(self.device)
            engine.close()
            del engine, runner
            gc.collect()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()


class Running:
    """An engine, and what is measured while it runs."""

    def __init__(self, engine: GenerateEngine, runner: DeviceRunner, device: str, recorded: dict[str, Any]) -> None:
        self.engine = engine
        self.recorded = recorded
        """How many steps are graphs, how long that took, and what is none and why."""
        self._vocabulary: int = runner.vocabulary
        self._device = device
        self._launch_s = 0.0
        launch = runner.launch

        def timed(step: EngineStep) -> list[SequenceStep]:
            began = time.perf_counter()
            lost = launch(step)
            self._launch_s += time.perf_counter() - began
            return lost

        runner.launch = timed  # type: ignore[method-assign] # measured where the engine calls it

    def fill(self, workload: Workload, limit_s: float) -> None:
        """Let so many sequences run, and wait until all of them decode.

        Each may get as long as the engine lets it, whatever the batch: a pool of stretches of one length has room for
        each of them again. They share their prompt but for its last token: all but the first copy its keys and values,
        and do not compute them.
        """
        shared = [(31 * number + 7) % self._vocabulary for number in range(workload.prompt - 1)]
        started: set[int] = set()
        give_up_at = time.monotonic() + limit_s
        for ticket in range(workload.batch):
            self.engine.submit(
                TokenRequest(
                    ticket=ticket,
                    prompt_ids=[*shared, ticket % self._vocabulary],
                    max_new_tokens=self.engine.capacity().context - workload.prompt,
                    ignore_eos=True,
                    sampling=msgspec.structs.replace(SAMPLING[workload.kind], seed=ticket),
                )
            )
            while ticket not in started:
                started.update(event.ticket for event in self._events(give_up_at) if event.token_ids)

    def time_steps(self, batch: int, steps: int, limit_s: float) -> tuple[float, float]:
        """Return the median time of a step and of the host's part in it, in seconds, while all sequences decode."""
        give_up_at = time.monotonic() + limit_s
        for _ in range(WARM_UP_STEPS):
            self._events(give_up_at)
        times: list[float] = []
        host: list[float] = []
        at, spent_s = time.perf_counter(), self._launch_s
        while len(times) < steps:
            drawn = sum(len(event.token_ids) for event in self._events(give_up_at))
            if drawn == batch:
                now = time.perf_counter()
                times.append(now - at)
                host.append(self._launch_s - spent_s)
                at, spent_s = now, self._launch_s
        return statistics.median(times), statistics.median(host)

    def profile(self, limit_s: float) -> dict[str, Any]:
        """Return what some steps have the device do, by kernel: how often in a step, and for how many microseconds."""
        give_up_at = time.monotonic() + limit_s
        is_cuda = self._device.startswith("cuda")
        profiler: Any = torch.profiler
        activity = profiler.ProfilerActivity.CUDA if is_cuda else profiler.ProfilerActivity.CPU
        settle(self._device)
        with profiler.profile(activities=[activity]) as profile:
            for _ in range(PROFILED_STEPS):
                while not any(event.token_ids for event in self._events(give_up_at)):
                    pass
            settle(self._device)
        counts: Counter[str] = Counter()
        times: Counter[str] = Counter()
        for event in profile.events():
            is_ours = event.device_type.name == "CUDA" if is_cuda else event.cpu_parent is None
            if is_ours:
                counts[event.name] += 1
                times[event.name] += event.time_range.elapsed_us()
        return {
            "nodes_a_step": counts.total() / PROFILED_STEPS,
            "busy_us_a_step": times.total() / PROFILED_STEPS,
            "kernels": {
                name: [round(counts[name] / PROFILED_STEPS, 2), round(spent / PROFILED_STEPS, 1)]
                for name, spent in times.most_common(_LISTED_KERNELS)
            },
        }

    def drop(self, batch: int, limit_s: float) -> None:
        """End all sequences."""
        for ticket in range(batch):
            self.engine.cancel(ticket)
        give_up_at = time.monotonic() + limit_s
        left = batch
        while left:
            left -= sum(event.finish_reason is not None for event in self.engine.poll(0.1))
            _check(give_up_at)

    def _events(self, give_up_at: float) -> list[TokenEvent]:
        """Poll until something has happened."""
        while not (events := self.engine.poll(0.1)):
            _check(give_up_at)
        if ended := [event for event in events if event.finish_reason]:
            raise TooSlowError(f"sequence {ended[0].ticket} ended while it was measured: {ended[0]}")
        return events


def _check(give_up_at: float) -> None:
    if time.monotonic() > give_up_at:
        raise TooSlowError("the device did not come so far in time")


def measure(
    model: RandomModel,
    running: Running,
    workload: Workload,
    *,
    bytes_per_s: float,
    limit_s: float,
) -> StepTime:
    """Measure the steps of one batch size, and hold them against the bandwidth. The sequences go on."""
    batch, prompt, steps = workload.batch, workload.prompt, workload.steps
    running.fill(workload, limit_s)
    step_s, host_s = running.time_steps(batch, steps, limit_s)
    read = model.weight_bytes + batch * (prompt + steps // 2) * model.kv_bytes_per_token
    roofline_s = read / bytes_per_s
    return StepTime(batch, 1000 * step_s, 1000 * host_s, 1000 * roofline_s, roofline_s / step_s, batch / step_s)
