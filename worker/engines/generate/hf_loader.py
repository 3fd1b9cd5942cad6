"""Load a causal model with transformers, and look at what was read before anything is computed. Knows no request."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

import torch

from ...context import context_of
from ...model_files import ModelError
from ...model_fit import ANOTHER_ENGINE
from ...special_tokens import ids_in
from ...tokenizer import end_ids_of
from ..base import CannotLoadError, EngineSpec, Progress, dtype_on
from ..oom import explain
from . import quantize
from .attention import AttentionShape
from .loaded_check import check_numbers, check_report

_DTYPES: Final = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device, and what its configuration says."""

    model: Any
    context: int
    eos_ids: frozenset[int]
    kv_bytes_per_token: int
    is_cuda: bool


def untyped(module: str) -> Any:  # noqa: ANN401 - this is the one door to what has no usable types
    """Import a module whose annotations no type checker can follow."""
    return importlib.import_module(module)


def load(spec: EngineSpec, progress: Progress) -> Loaded:
    """Load `spec.model_path`; float32 on CPU and bfloat16 on CUDA unless `spec.dtype` says otherwise."""
    how = quantize.arguments(spec, dtype_of(spec))
    model, report = read_weights(spec, progress, "AutoModelForCausalLM", how)
    is_cuda = spec.device.startswith("cuda")
    where = spec.model_path
    check_report(report, where)
    progress("loading", 100.0)
    if is_cuda:
        progress("warming", 0.0)  # the first kernels: a device that hangs does so here, and from now on it is watched
    check_numbers(quantize.plain_tensors(model.named_parameters()), where)
    if how:
        quantize.check_coverage(model, spec)
    return _describe(model, spec, is_cuda=is_cuda)


def read_weights(
    spec: EngineSpec, progress: Progress, model_class: str, how: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Read a model with one of transformers' classes and arguments of one's own; also return the report of it."""
    progress("loading", 0.0)
    transformers = untyped("transformers")
    is_cuda = spec.device.startswith("cuda")
    if not is_cuda:
        # What the environment says (OMP_NUM_THREADS, from the agent) is said again: MKL might else take fewer at times,
        # and a product of other parts rounds otherwise. Where every bit counts it is said alike on every machine, since
        # a stream may go on where there are more cores.
        is_exact = spec.options.get("deterministic") == "1"
        default = 1 if is_exact else torch.get_num_threads()
        torch.set_num_threads(spec.count("threads", default))
    dtype = getattr(torch, dtype_of(spec))
    previous = transformers.logging.set_tqdm_hook(_reporting(progress))
    loudness = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its table of tensors says that random ones may be served
    try:
        return _read(transformers, spec, model_class, dtype=dtype, is_cuda=is_cuda, how=how)
    finally:
        transformers.logging.set_verbosity(loudness)
        transformers.logging.set_tqdm_hook(previous)


def _read(
    transformers: Any,  # noqa: ANN401 - it is badly typed
    spec: EngineSpec,
    model_class: str,
    *,
    dtype: object,
    is_cuda: bool,
    how: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Let transformers read the files; what it says against them is final, unlike a lack of memory or a broken disk."""
    try:
        return cast(
            "tuple[Any, dict[str, Any]]",
            getattr(transformers, model_class).from_pretrained(
                spec.model_path,
                dtype=dtype,
                device_map={"": spec.device} if is_cuda else None,
                local_files_only=True,
                trust_remote_code=False,  # else it would ask at the terminal whether it may run a model's own code
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, with all others and by their names
                # Named outright, or transformers would take flash attention if it finds it, other numbers and all.
                **{"attn_implementation": "sdpa", **how},
            ),
        )
    except (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        raise _refusal(spec, error, transformers.__version__) from error
    except RuntimeError as error:
        if not quantize.is_about_bits(spec) or explain(error, "") is not None:
            raise
        raise _refusal(spec, error, transformers.__version__) from error


def _refusal(spec: EngineSpec, error: Exception, version: str) -> CannotLoadError:
    if "trust_remote_code" in str(error):
        return CannotLoadError(
            f"{spec.model_path} brings code of its own (auto_map in config.json), which is never run here; "
            "name a model that transformers knows by itself"
        )
    words = _own_part(" ".join(str(error).split()))
    remedy = f"; try {ANOTHER_ENGINE}" if quantize.is_about_bits(spec) else ""
    return CannotLoadError(f"transformers {version} cannot load {spec.model_path}: {words}{remedy}")


def _own_part(words: str) -> str:
    """Leave out what is no help here: whom else to ask for an attention, and the list of all models there are."""
    if "does not support an attention implementation" in words:
        return f"its attention cannot be replaced ({words.split(maxsplit=1)[0]})"
    return words.partition(" for this kind of AutoModel")[0][:400]


def dtype_of(spec: EngineSpec) -> str:
    """Return the name of the type to compute in. Raises CannotLoadError."""
    dtype = dtype_on(spec.device, spec.dtype, spec.quantize)
    if dtype not in _DTYPES:
        raise CannotLoadError(f"dtype {dtype!r} is unknown; there are {', '.join(_DTYPES)}")
    return dtype


def _describe(model: Any, spec: EngineSpec, *, is_cuda: bool) -> Loaded:  # noqa: ANN401 - transformers is badly typed
    config = model.config.get_text_config()
    return Loaded(
        model=model,
        context=_context(config, spec),
        eos_ids=_end_ids(spec) or frozenset(ids_in(model.generation_config.eos_token_id)),
        kv_bytes_per_token=AttentionShape.of(config).bytes_per_token(model.dtype),
        is_cuda=is_cuda,
    )


def _end_ids(spec: EngineSpec) -> frozenset[int]:
    try:
        return end_ids_of(Path(spec.model_path))  # what the agent goes by
    except ModelError as error:
        raise CannotLoadError(str(error)) from None


def _context(config: Any, spec: EngineSpec) -> int:  # noqa: ANN401 - transformers is badly typed
    """Return the context to serve: the model's, or less if less was asked for."""
    try:
        most = context_of(config.to_dict())
    except ValueError as error:
        raise CannotLoadError(f"{spec.model_path}/config.json: {error}") from None
    if most is None:
        raise CannotLoadError(f"{spec.model_path}/config.json does not say how many positions the model has")
    if spec.max_model_len > most:
        raise CannotLoadError(
            f"--max-model-len {spec.max_model_len} is more than the model has: its context is {most} tokens; lower it, "
            "or leave it out"
        )
    return spec.max_model_len or most


def _reporting(progress: Progress) -> Callable[..., Any]:
    """Make transformers' progress bars report to us: it draws one over the weights of a model."""

    def bar(_factory: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bar:
        return _Bar(progress, *args, **kwargs)

    return bar


class _Bar:
    """What transformers uses of tqdm's interface."""

    def __init__(self, progress: Progress, iterable: Any = None, **kwargs: Any) -> None:  # noqa: ANN401
        self._progress = progress
        self._iterable = iterable
        self._total = int(kwargs.get("total") or (len(iterable) if hasattr(iterable, "__len__") else 0))
        self._done = 0

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self.update()

    def update(self, count: int = 1) -> None:
        """Count, and report the share."""
        self._done += count
        if self._total:
            self._progress("loading", min(100.0 * self._done / self._total, 100.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Callable[..., None]:
        """Ignore the rest of tqdm: descriptions and postfixes have nowhere to go."""
        return lambda *_args, **_kwargs: None
