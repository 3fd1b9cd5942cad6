"""How many nodes a recorded decode step has, in each layer and outside the layers: what a small batch waits for.

A graph's node starts some microseconds after the one before it, however little it does, so at batch 1 their number is
time. They are counted by tracing: the step runs on tensors without numbers, whatever torch would launch is seen by its
dispatcher, and each launch of a kernel of ours is written down in its place. No GPU is needed, and no Triton; a product
of matrices counts as one, though cuBLAS may split it and add the parts. What a step of so many layers has in common
with one of more is what lies outside them.

`python bench/graph_nodes.py` prints the counts, with our own attention (`attention=triton`) and with torch's, which is
the default; it fails if those with our own are more than the goals below. Torch's misses them: 13 nodes a layer. Log
probabilities are no part of them: only steps that report any compute them, and torch finds the likeliest tokens with
several kernels that count as one here.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MOST_IN_A_LAYER: Final = 10
MOST_OUTSIDE: Final = 12
MOST_FOR_SHAPED: Final = 3
"""More for a step whose requests want penalties and a cut than for a plain one."""
SHAPES: Final = {
    # vocabulary, width, MLP width, heads, kv heads, size of a head, whether queries and keys have norms
    "llama 1B": (128_256, 2048, 8192, 32, 8, 64, False),
    "llama 8B": (128_256, 4096, 14_336, 32, 8, 128, False),
    "qwen3 8B": (151_936, 4096, 12_288, 32, 8, 128, True),
}
_CALLS_WITHOUT_A_LAUNCH: Final = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "_unsafe_view",
    "detach",
    "alias",
}
_NODES_OF_FLASH: Final = 5
"""Its kernel, the one that puts splits together, and three copies of queries and results (torch 2.13)."""
_WITH_KERNELS: Final = ("kernel_ops", "kernel_sampler", "split_kv")
_FOLDER: Final = "zmqrt.worker.engines.generate"


class _Launch:
    """A kernel that is not run."""

    def __init__(self, name: str, seen: Counter[str]) -> None:
        self._name = name
        self._seen = seen

    def __getitem__(self, _grid: object) -> _Launch:
        return self

    def __call__(self, *_arguments: object, **_options: object) -> None:
        self._seen[self._name] += 1


class _Kernels:
    """Stands in for a module of kernels."""

    def __init__(self, seen: Counter[str]) -> None:
        self._seen = seen

    def __getattr__(self, name: str) -> _Launch:
        return _Launch(name, self._seen)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Counts what torch launches."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self._seen = seen

    def __torch_dispatch__(
        self,
        function: Any,  # noqa: ANN401 - torch's operations are untyped
        _types: object,
        arguments: Sequence[Any] = (),
        options: dict[str, Any] | None = None,
    ) -> object:
        """Count an operation, and let it go on."""
        name = str(function.overloadpacket.__name__)
        if not function.is_view and name not in _CALLS_WITHOUT_A_LAUNCH:
            self._seen[f"torch {name}"] += 1
        return function(*arguments, **(options or {}))


def counts(shape: str, attention: str, rows: int = 8) -> dict[str, dict[str, Counter[str]]]:
    """Return what a step of so many rows launches, by how its requests are drawn: in a layer, and outside."""
    two, three = (_launches(shape, attention, layers, rows) for layers in (2, 3))
    found: dict[str, dict[str, Counter[str]]] = {}
    for way, launches in two.items():
        layer = three[way] - launches
        found[way] = {"a layer": layer, "outside": launches - layer - layer}
    return found


def _launches(shape: str, attention: str, layers: int, rows: int) -> dict[str, Counter[str]]:
    """Run a step in each way; return what it has launched."""
    from zmqrt.worker.engines.generate.kernel_ops import KernelOps
    from zmqrt.worker.engines.generate.llama import LlamaDecoder
    from zmqrt.worker.engines.generate.sequence_table import SamplingMode

    seen: Counter[str] = Counter()
    for name in _WITH_KERNELS:
        vars(importlib.import_module(f"{_FOLDER}.{name}"))["kernels"] = _Kernels(seen)
    runner = _runner(LlamaDecoder(_model(shape, layers), KernelOps()), attention, rows, seen)
    slots = torch.zeros(rows, dtype=torch.int64, device="meta")
    ways = {
        "plain": SamplingMode.PLAIN,
        "cut": SamplingMode.CUT,
        "shaped": SamplingMode.CUT | SamplingMode.ADJUSTED,
        "with log probabilities": SamplingMode.CUT | SamplingMode.ADJUSTED | SamplingMode.REPORTED,
    }
    found: dict[str, Counter[str]] = {}
    for way, mode in ways.items():
        seen.clear()
        with torch.no_grad(), _Operations(seen):
            runner._decode(slots, mode, 512)  # noqa: SLF001 - it is what a graph is recorded of
        found[way] = Counter(seen)
    return found


def _runner(decoder: Any, attention: str, rows: int, seen: Counter[str]) -> Any:  # noqa: ANN401 - we look into it
    from zmqrt.worker.engines.generate.device_runner import DeviceRunner
    from zmqrt.worker.engines.generate.schedule import SchedulerLimits
    from zmqrt.worker.engines.generate.split_kv import SplitKvAttention

    def torchs(query: torch.Tensor, *_rest: object) -> torch.Tensor:
        """Stand in for torch's operation, which knows no tensors without numbers."""
        seen["torch flash attention"] += _NODES_OF_FLASH
        return query

    own = SplitKvAttention(decoder.shape, rows, 4096, device="meta")
    return DeviceRunner(
        decoder,
        4096,
        SchedulerLimits(slots=rows, context=512, chunk_tokens=64, depth=2),
        dtype=torch.bfloat16,
        device="meta",
        operations=decoder.operations,
        operation=own if attention == "own" else torchs,
    )


def _model(shape: str, layers: int) -> Any:  # noqa: ANN401 - what transformers would have made of it
    """Make what a decoder takes of a model: weights without numbers."""
    vocabulary, width, mlp, heads, kv_heads, size, has_norms = SHAPES[shape]

    def weight(*sizes: int) -> SimpleNamespace:
        return SimpleNamespace(weight=torch.empty(sizes, dtype=torch.bfloat16, device="meta"), bias=None)

    def layer() -> SimpleNamespace:
        norms = {"q_norm": weight(size), "k_norm": weight(size)} if has_norms else {}
        return SimpleNamespace(
            input_layernorm=weight(width),
            post_attention_layernorm=weight(width),
            self_attn=SimpleNamespace(
                q_proj=weight(heads * size, width),
                k_proj=weight(kv_heads * size, width),
                v_proj=weight(kv_heads * size, width),
                o_proj=weight(width, heads * size),
                **norms,
            ),
            mlp=SimpleNamespace(gate_proj=weight(mlp, width), up_proj=weight(mlp, width), down_proj=weight(width, mlp)),
        )

    def rotary(like: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = torch.empty((1, position_ids.shape[1], size), dtype=like.dtype, device="meta")
        return angles, angles

    return SimpleNamespace(
        device="meta",
        dtype=torch.bfloat16,
        config=SimpleNamespace(
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=size,
            hidden_size=width,
            rms_norm_eps=1e-6,
            max_position_embeddings=512,
        ),
        model=SimpleNamespace(
            layers=[layer() for _ in range(layers)],
            embed_tokens=weight(vocabulary, width),
            norm=weight(width),
            rotary_emb=rotary,
        ),
        lm_head=weight(vocabulary, width),
    )


def import_without_triton() -> None:
    """Import what calls kernels also where there is no Triton, which nothing else must take for the real one."""

    def same(value: Any = None, **_options: object) -> Any:  # noqa: ANN401 - whatever is marked
        return same if value is None else value

    def cdiv(one: int, other: int) -> int:
        return -(-one // other)

    def next_power_of_2(value: int) -> int:
        return 1 << (value - 1).bit_length()

    triton, language = ModuleType("triton"), ModuleType("triton.language")
    vars(language).update(constexpr=same)
    vars(triton).update(jit=same, language=language, cdiv=cdiv, next_power_of_2=next_power_of_2)
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "triton"}
    sys.modules.update({"triton": triton, "triton.language": language})
    for name in _WITH_KERNELS:
        importlib.import_module(f"{_FOLDER}.{name}")
    del sys.modules["triton"], sys.modules["triton.language"]
    sys.modules.update(real)


def main(shapes: Sequence[str]) -> int:
    """Print all counts; 1 if a goal is missed."""
    import_without_triton()
    missed: list[str] = []
    for shape, attention in itertools.product(shapes or SHAPES, ("own", "torch's")):
        totals: dict[str, tuple[int, int]] = {}
        for way, where in counts(shape, attention).items():
            totals[way] = where["a layer"].total(), where["outside"].total()
            print(f"{shape}, {attention} attention, {way}: {totals[way][0]} nodes a layer, {totals[way][1]} outside")
            if attention == "own" and way in {"plain", "with log probabilities"}:
                print(*(f"    {place}: {_words(names)}" for place, names in where.items()), sep="\n")
        (in_layer, plain), (_, shaped) = totals["plain"], totals["shaped"]
        if attention == "own" and (
            in_layer > MOST_IN_A_LAYER or plain > MOST_OUTSIDE or shaped > min(MOST_OUTSIDE, plain + MOST_FOR_SHAPED)
        ):
            missed.append(f"{shape} misses a goal: {in_layer} nodes a layer, {plain} outside, {shaped} if shaped")
    print(*missed, sep="\n", end="\n" if missed else "")
    return 1 if missed else 0


def _words(names: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
