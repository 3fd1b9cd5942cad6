"""Makes one engine one way: which decoder runs the model, on what, and what is tried and left out at once."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ...context import GROWING, kind_of, scalings
from ...tokenizer import Known, load_tokenizer
from ..base import CannotLoadError, EngineFatalError, EngineSpec, Progress
from ..grammar import Grammars, is_installed
from ..oom import explain
from . import flash, hf_decoder, llama, self_test, sizing
from .device_runner import DeviceRunner
from .dry_run import DryRun, dry_run
from .engine import GenerateEngine
from .flash import Operation
from .gpu_memory import GpuMemory
from .hf_loader import Loaded, load
from .ops import TorchOps
from .prompt_pace import PromptPace
from .schedule import SchedulerLimits
from .torch_runner import Decoder, TorchRunner
from .ways import Way

log = logging.getLogger(__name__)
MakeOperation = Callable[[int, SchedulerLimits], Operation]
"""Makes what attends over a pool of so many tokens."""
ATTENTIONS: Final = ("flash", "triton")
"""What attends in steps of running sequences. The first is the default until a GPU has measured both."""
_CUDA_DEPTH: Final = 2
"""Steps under way: one is computed while the one before it is read and the next one planned."""


class EngineMaker:
    """Makes one engine from one model the way that is given; `used` is what it is made of, as far as that is known."""

    def __init__(self, spec: EngineSpec, progress: Progress, way: Way) -> None:
        self._spec = spec
        self._progress = progress
        self.way = way
        self.used = way
        self.following: tuple[Way, str] | None = None
        """The way to try next, where it is known what has failed."""
        self._notes: list[str] = []
        self._memory: GpuMemory | None = None

    def is_device_lost(self) -> bool:
        """Whether only another process can go on."""
        return self._memory is not None and self._memory.is_lost()

    def make(self) -> GenerateEngine:
        """Load, choose, and compare with transformers. Raises SelfTestError if another way may do better."""
        loaded = load(self._spec, self._progress)
        if loaded.is_cuda:
            self._memory = GpuMemory(loaded.model.device)
            self._progress("warming", 0.0)  # the reference is the next to compute
        path, why = _choose(self._spec.model, self.way.path, loaded.model)
        log.info("model %s runs on the path %r%s", self._spec.model, path, f": {why}" if why else "")
        reference = self_test.Reference(loaded.model, self._spec.model_path)
        loaded = _bound_growth(self._spec, loaded)
        self._progress("warming", 0.0)
        self.used = dataclasses.replace(self.way, path=path)
        operations = self.operations(loaded)
        decoder: Decoder = (
            llama.LlamaDecoder(loaded.model, operations, loaded.context)
            if path == "fused"
            else hf_decoder.HfDecoder(loaded.model)
        )
        why_not = self._why_no_flash(loaded, decoder)
        has_flash = why_not is None
        own = self.attention(loaded, decoder) if has_flash else None
        has_kernels = type(operations) is not TorchOps or own is not None
        self.used = Way(path, has_kernels, has_graphs=has_flash and self.way.has_graphs, has_flash=has_flash)
        engine = self._on_device(loaded, decoder, operations, own) if has_flash else self._plain(loaded, decoder)
        try:
            reference.check(engine)
        except BaseException:
            with contextlib.suppress(Exception):  # a device that fails fails at this too
                engine.close()
            raise
        self._progress("warming", 100.0)
        engine.fallback = "; ".join(self._notes)
        return engine

    def _note(self, words: str) -> None:
        """Tell operators, now and in the status, what the engine has to do without."""
        log.warning("%s", words)
        self._notes.append(words)

    def operations(self, loaded: Loaded) -> TorchOps:
        """Take one kernel for each small operation where that works, else plain torch."""
        if not loaded.is_cuda or not self.way.has_kernels:
            return TorchOps()
        try:
            from . import kernel_ops
        except ImportError as error:
            self._note(f"Triton's kernels are not used: {error}")
            return TorchOps()
        operations, why_not = kernel_ops.working(loaded.model.dtype, loaded.model.device)
        self._progress("warming", 0.0)
        if why_not is not None:
            self._leave_if_lost(dataclasses.replace(self.used, has_kernels=False), "Triton's kernels", why_not)
            use = " to draw tokens" if isinstance(operations, kernel_ops.KernelOps) else ""
            self._note(f"Triton's kernels are not used{use}: {why_not}")
        return operations

    def _leave_if_lost(self, following: Way, what: str, why_not: str) -> None:
        """Do not go on where trying something has cost this process its device."""
        if self.is_device_lost():
            self.following = following, what
            raise self_test.SelfTestError(why_not)

    def attention(self, loaded: Loaded, decoder: Decoder) -> MakeOperation | None:
        """Take kernels of our own for running sequences where they are asked for and work, else None."""
        if not self.way.has_kernels or self._spec.options.get("attention", ATTENTIONS[0]) != "triton":
            return None
        shape, dtype, device = decoder.shape, loaded.model.dtype, loaded.model.device
        try:
            from . import split_kv
        except ImportError as error:
            self._note(f"Triton's attention is not used: {error}")
            return None
        why_not = split_kv.why_not(shape, dtype, device)
        self._progress("warming", 0.0)
        if why_not is not None:
            self._leave_if_lost(dataclasses.replace(self.used, has_kernels=False), "Triton's kernels", why_not)
            self._note(f"Triton's attention is not used: {why_not}")
            return None

        def make(kv_tokens: int, limits: SchedulerLimits) -> Operation:
            return split_kv.SplitKvAttention(
                shape, limits.slots, kv_tokens, device=device, is_deterministic=limits.is_deterministic
            )

        return make

    def _why_no_flash(self, loaded: Loaded, decoder: Decoder) -> str | None:
        if not loaded.is_cuda:
            return "there is no GPU"
        if not self.way.has_flash:
            return "it was left out"
        why_not = flash.why_not(decoder.shape, loaded.model.dtype, loaded.model.device)
        if why_not is not None:
            self._leave_if_lost(dataclasses.replace(self.used, has_flash=False), "flash attention", why_not)
            self._note(f"flash attention is not used, and many sequences at once will be slow: {why_not}")
        return why_not

    def _plain(self, loaded: Loaded, decoder: Decoder) -> GenerateEngine:
        """Compute sequence by sequence: on a CPU, and on a GPU at need."""
        free = self._memory.free_bytes if self._memory is not None else 0
        kv_tokens = sizing.plan_tokens(
            self._spec, loaded, sizing.plain_rows(self._spec), free - (sizing.SPARE_MIB << 20)
        )
        limits = sizing.plain_limits(self._spec, loaded, kv_tokens)
        is_paced = not (loaded.is_cuda or limits.is_deterministic or "chunk" in self._spec.options)
        dtype, device = loaded.model.dtype, loaded.model.device
        return GenerateEngine(
            TorchRunner(decoder, kv_tokens, limits, dtype=dtype, device=device),
            kv_tokens=kv_tokens,
            limits=limits,
            eos_ids=sorted(loaded.eos_ids),
            grammars=self._grammars(decoder),
            pace=PromptPace() if is_paced else None,
        )

    def _on_device(
        self, loaded: Loaded, decoder: Decoder, operations: TorchOps, own: MakeOperation | None
    ) -> GenerateEngine:
        """Compute on a GPU. Raises SelfTestError for what fails there, unless it is for want of memory."""
        try:
            return self._pooled(loaded, decoder, operations, own)
        except RuntimeError as error:
            if explain(error, "") is not None:
                raise
            words = " ".join(str(error).split())[:200]
            raise self_test.SelfTestError(f"{type(error).__name__}: {words}") from error

    def _pooled(
        self, loaded: Loaded, decoder: Decoder, operations: TorchOps, own: MakeOperation | None
    ) -> GenerateEngine:
        """Make the engine with a pool of all that a step leaves."""
        memory = self._memory
        assert memory is not None
        limits = sizing.device_limits(self._spec, loaded, memory.free_bytes)
        limits.depth = _CUDA_DEPTH

        def make(kv_tokens: int, its_limits: SchedulerLimits) -> DeviceRunner:
            self._progress("warming", 0.0)  # each size that is tried is a step of its own
            model = loaded.model
            return DeviceRunner(
                decoder,
                kv_tokens,
                its_limits,
                dtype=model.dtype,
                device=model.device,
                operations=operations,
                operation=flash.flash if own is None else own(kv_tokens, its_limits),
            )

        seen = self._try_dry(make, limits, memory)
        budget = memory.free_bytes - sizing.reserve(seen, limits, decoder.vocabulary, has_graphs=self.way.has_graphs)
        kv_tokens = sizing.plan_tokens(self._spec, loaded, limits.slots, budget)
        limits = dataclasses.replace(sizing.paced(self._spec, limits, seen), context=min(limits.context, kv_tokens))
        runner = make(kv_tokens, limits)
        if self.way.has_graphs:
            self._record(runner)
        return GenerateEngine(
            runner,
            kv_tokens=kv_tokens,
            limits=limits,
            eos_ids=sorted(loaded.eos_ids),
            grammars=self._grammars(decoder),
        )

    def _grammars(self, decoder: Decoder) -> Grammars | None:
        """Take what the model's tokens say; None if it has no such file, or nothing that knows grammars is here.

        A model that cannot have them is served without.
        """
        directory = Path(self._spec.model_path)
        if not (is_installed() and (directory / "tokenizer.json").is_file()):
            return None
        try:
            tokenizer = load_tokenizer(directory, Known(frozenset(), has_template=False))
            ids = range(decoder.vocabulary)
            return Grammars([tokenizer.spell(each) for each in ids], tokenizer.markers, clock=time.thread_time)
        except Exception as error:  # noqa: BLE001 - whatever two libraries make of a stranger's file
            self._note(f"answers cannot keep to a grammar: {type(error).__name__}: {str(error)[:200]}")
            return None

    def _try_dry(
        self, make: Callable[[int, SchedulerLimits], DeviceRunner], limits: SchedulerLimits, memory: GpuMemory
    ) -> DryRun:
        try:
            seen = dry_run(make, limits, memory)
        except EngineFatalError as error:
            raise self_test.SelfTestError(f"a first step failed: {str(error)[:200]}") from error
        self._progress("warming", 0.0)
        log.info(
            "%d tokens of prompts take %.1f ms and %d MiB", seen.tokens, 1000 * seen.seconds, seen.most_bytes >> 20
        )
        return seen

    def _record(self, runner: DeviceRunner) -> None:
        lost = runner.record(lambda percent: self._progress("warming", percent))
        self.used = dataclasses.replace(self.used, has_graphs=runner.recorded > 0)
        for words in lost:
            log.warning("a decode step is not recorded as a graph, and slow at small batches: %s", words)
        if lost:
            self._notes.append(f"{len(lost)} kinds of decode steps are not recorded as graphs ({lost[0]})")


def _bound_growth(spec: EngineSpec, loaded: Loaded) -> Loaded:
    """Say it if a rotary embedding changes when a text grows: transformers turns a whole batch by its longest text.

    Where the same numbers are promised in any batch, the context ends before that.
    """
    config = loaded.model.config.get_text_config().to_dict()
    stretched = [scaling for scaling in scalings(config) if kind_of(scaling) in GROWING]
    if not stretched:
        return loaded
    original = int(stretched[0].get("original_max_position_embeddings") or config["max_position_embeddings"])
    if loaded.context <= original:
        return loaded
    text = f"beyond {original} tokens a text changes how all in its batch are computed"
    if not sizing.is_on(spec, "deterministic", default=False):
        log.warning("%s; --max-model-len %d rules that out", text, original)
        return loaded
    if spec.max_model_len > original:
        raise CannotLoadError(f"--engine-opt deterministic=1: {text}; --max-model-len {original} is the most")
    log.warning("%s; with deterministic=1 the context is bounded to that", text)
    return dataclasses.replace(loaded, context=original)


def _choose(name: str, wanted: str, model: Any) -> tuple[str, str]:  # noqa: ANN401 - transformers' models are untyped
    """Take the fused decoder where it can run the model, or the path that was asked for; say why not the fused one."""
    kind = model.config.model_type
    refused = hf_decoder.why_not(model)
    if refused is not None:
        raise CannotLoadError(
            f"{name} cannot be run here: {refused} (model type {kind}). zmqrt runs decoders whose layers all attend to "
            "everything before a token, by our own code or by transformers' modules with our attention inside"
        )
    not_fused = llama.why_not(model.config)
    if wanted == "fused" and not_fused is not None:
        raise CannotLoadError(f"--engine-opt path=fused: {not_fused}; leave it out, and {name} runs on 'modules'")
    if wanted != "auto":
        return wanted, "asked for"
    return ("fused", "") if not_fused is None else ("modules", not_fused)
