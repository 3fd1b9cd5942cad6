"""Every GPU kernel as the engine launches it, built for cards that are not here, and what its build takes.

The launches below are real calls of the engine's own operations on CPU tensors; a driver that only names a card stands
in for CUDA's, so types, constants and alignments are those of a real launch. Nothing is run: what comes out is garbage.
A new kernel gets a line in `launches`.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch

from zmqrt.worker.engines import generate
from zmqrt.worker.engines.generate.attention import AttentionShape
from zmqrt.worker.engines.generate.flash import FlashAttention, Layout
from zmqrt.worker.engines.generate.ops import HeadNorms
from zmqrt.worker.engines.generate.sequence_table import SamplingMode, SequenceTable
from zmqrt.worker.engines.generate.transfers import Transfers

ARCHITECTURES: Final = {80: 163, 89: 99, 90: 227, 100: 227}
"""Compute capability, and the KiB of shared memory that one block may have there (CUDA C++ Programming Guide, table of
technical specifications): A100, L4 and RTX 4090, H100 and H200, B200."""
_CARD: Final = "cpu"
_USAGE: Final = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class KernelBuild:
    """One kernel for one card, by the name of its launch. `spilled_bytes`: what of a thread lies in memory for want of
    registers."""

    name: str
    kernel: str
    architecture: int
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int

    def __str__(self) -> str:
        text = f"{self.name:38} sm_{self.architecture:<4} {self.warps:2} warps {self.registers:4} registers"
        return f"{text} {self.spilled_bytes:5} B spilled {self.shared_bytes:7} B shared"


def launches() -> dict[str, Callable[[], object]]:
    """Return a call for each kernel, by a name for the report; sizes are those of the 8B llama unless it says so."""
    from zmqrt.worker.engines.generate import kernel_ops  # it needs Triton, which CPU builds of torch do not bring

    ours = kernel_ops.KernelOps()
    table = SequenceTable(3, 128256, 0, Transfers(_CARD))
    sampler = ours.sampler(table)
    slots = torch.arange(3)
    heads, turn = _empty(3, 48, 128), (_empty(9, 128), _empty(9, 128), slots)
    llama, qwen = AttentionShape(1, 32, 8, 128), HeadNorms(_empty(128), _empty(128), 1e-6)
    return {
        "add_norm": lambda: ours.add_norm(_empty(3, 4096), _empty(3, 4096), _empty(4096), 1e-5),
        "add_norm, first": lambda: ours.add_norm(_empty(3, 4096), None, _empty(4096), 1e-5),
        "rotate_and_store": lambda: ours.rotate_and_store(heads, turn, pool(llama), 0),
        "rotate_and_store, normed": lambda: ours.rotate_and_store(heads, turn, pool(llama), 0, qwen),
        "read_inputs": lambda: ours.inputs(table, slots),
        "gate": lambda: ours.gate(_empty(3, 28672)),
        "hash_rows": lambda: sampler.hashes(slots),
        "draw, plain": lambda: sampler.draw(slots, _empty(3, 128256), SamplingMode.PLAIN),
        "draw, shaped": lambda: sampler.draw(slots, _empty(3, 128256), SamplingMode.CUT | SamplingMode.ADJUSTED),
        "attention 8B": lambda: _attend(AttentionShape(1, 32, 8, 128)),
        "attention 1B": lambda: _attend(AttentionShape(1, 32, 8, 64)),
        "attention, no groups": lambda: _attend(AttentionShape(1, 32, 32, 128)),
        "attention, largest heads": lambda: _attend(AttentionShape(1, 8, 4, 256)),
        "attention, float32": lambda: _attend(AttentionShape(1, 32, 8, 128), torch.float32),
    }


def _attend(shape: AttentionShape, dtype: torch.dtype = torch.bfloat16) -> None:
    from zmqrt.worker.engines.generate.split_kv import SplitKvAttention

    attention = SplitKvAttention(shape, 64, 4096, device=_CARD)
    keys = torch.zeros((64, shape.kv_heads, shape.head_size), dtype=dtype)
    numbers = torch.zeros(4, dtype=torch.int32)
    layout = Layout(torch.arange(3), numbers, numbers, numbers[:3], 1, 1)
    attention(torch.zeros((3, shape.heads, shape.head_size), dtype=dtype), keys, keys, layout, None)


def pool(shape: AttentionShape, dtype: torch.dtype = torch.bfloat16) -> FlashAttention:
    """Return a small pool that is prepared for three tokens."""
    attention = FlashAttention(shape, 64, dtype=dtype, device=_CARD)
    none = torch.zeros(4, dtype=torch.int32)
    attention.prepare(Layout(torch.arange(3), none, none, none[:3], 1, 1))
    return attention


def defined_kernels() -> set[str]:
    """Return the names of all kernels that can be launched; those with an underscore are parts of them."""
    function = _triton("runtime.jit").JITFunction
    names = [module.name for module in pkgutil.iter_modules(generate.__path__) if module.name.endswith("kernels")]
    modules = [importlib.import_module(f"{generate.__name__}.{name}") for name in names]
    found = {name for module in modules for name, value in vars(module).items() if isinstance(value, function)}
    return {name for name in found if not name.startswith("_")}


def build(name: str, launch: Callable[[], object], architecture: int) -> list[KernelBuild]:
    """Build what a call launches; several kernels are told apart by their own names. Raises what the compiler does."""
    compiled: list[Any] = []
    with _compiling_for(architecture, compiled):
        launch()
    assert compiled, f"{name} launches no kernel"
    names = [name if len(compiled) == 1 else f"{name}: {kernel.metadata.name}" for kernel in compiled]
    return [_read(label, kernel, architecture) for label, kernel in zip(names, compiled, strict=True)]


def _triton(module: str) -> Any:
    """Import a part of Triton, which is not typed and not everywhere."""
    return importlib.import_module(f"triton.{module}")


def _empty(*size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.bfloat16)


@contextlib.contextmanager
def _compiling_for(architecture: int, compiled: list[Any]) -> Generator[None]:
    """Let each launch compile its kernel, and no more."""
    # Triton keeps what it has compiled by the number of the device, so that is the card here.
    driver = mock.Mock()
    driver.get_current_device.return_value = architecture
    driver.get_current_target.return_value = _triton("backends.compiler").GPUTarget("cuda", architecture, 32)
    function = _triton("runtime.jit").JITFunction
    run = function.run

    def only_compile(kernel_function: Any, *arguments: Any, **options: Any) -> Any:
        kernel = run(kernel_function, *arguments, **{**options, "warmup": True})
        compiled.append(kernel)
        return kernel

    drivers = _triton("runtime").driver
    with mock.patch.object(drivers, "_active", driver), mock.patch.object(function, "run", only_compile):
        yield


def _read(name: str, kernel: Any, architecture: int) -> KernelBuild:
    """Ask the tool that comes with Triton what a compiled kernel takes."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [_triton("knobs").nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = _USAGE.search(said)
    assert found is not None, said
    registers, stack, _, local = map(int, found.groups())
    metadata = kernel.metadata
    return KernelBuild(name, metadata.name, architecture, metadata.num_warps, registers, stack + local, metadata.shared)
