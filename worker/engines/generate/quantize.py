"""Weights in eight and four bits: torchao makes them while transformers reads a model, one matrix after the other.

Only weights become smaller. What is computed with them is computed in the type of the engine, and embedding, head and
norms keep that type. So the whole model is never in memory in 16 or 32 bits, and a card may hold one that it could not.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import torch

from ...model_directory import enumerate_names, read_tensors
from ...model_files import ModelError, read_json_object
from ...model_fit import ANOTHER_ENGINE
from ..base import CannotLoadError, EngineSpec

log = logging.getLogger(__name__)
for _loud in (
    "torchao",
    "torch.utils._pytree",
):  # of kernels for cards that are not here, and of each other'"'"'s names
    logging.getLogger(_loud).setLevel(logging.ERROR)
_GROUPS: Final = (128, 64, 32)
"""How many weights of a row may share a scale in four bits; a row has to be a multiple of it."""
_LEFT_SHARE: Final = 0.1
"""So much of a model's layers may stay as it is: routers of experts, a projection of an odd shape."""


def method_of(config: Any) -> str:  # noqa: ANN401 - transformers' configurations are untyped
    """Return how the weights of a model are stored in fewer bits, by transformers' name for it; "" if they are not."""
    found: Any = getattr(config, "quantization_config", None)
    if not found:
        return ""
    fields = cast("dict[str, Any]", found) if isinstance(found, dict) else None
    method: Any = getattr(cast("object", found), "quant_method", None) if fields is None else fields.get("quant_method")
    return str(getattr(method, "value", method) or "unnamed")


def arguments(spec: EngineSpec, dtype: str) -> dict[str, Any]:
    """Return what to tell transformers' loader so that it quantises as `spec` says. Raises CannotLoadError."""
    if spec.quantize == "none":
        return {}
    directory = Path(spec.model_path)
    if is_quantised_already(directory):
        raise CannotLoadError(
            f"--quantize {spec.quantize}: {directory} is quantised already (quantization_config of its config.json); "
            "leave --quantize out, or name the unquantised model"
        )
    if importlib.util.find_spec("torchao") is None:
        raise CannotLoadError(
            f"--quantize {spec.quantize} needs the package torchao, which is not installed: "
            "pip install 'zmqrt[quantize]'"
        )
    from transformers import TorchAoConfig

    return {"quantization_config": TorchAoConfig(_kind(spec, directory, dtype))}


def is_about_bits(spec: EngineSpec) -> bool:
    """Say whether a model has weights in fewer bits, or is to get them: what fails then may work in another engine."""
    return spec.quantize != "none" or is_quantised_already(Path(spec.model_path))


def is_quantised_already(directory: Path) -> bool:
    """Say whether the weights of a model lie in fewer bits."""
    try:
        return bool(read_json_object(directory / "config.json").get("quantization_config"))
    except ModelError as error:
        raise CannotLoadError(str(error)) from None


def _kind(spec: EngineSpec, directory: Path, dtype: str) -> Any:  # noqa: ANN401 - torchao's types are of no use here
    kinds: Any = importlib.import_module("torchao.quantization")
    if spec.quantize == "int8":
        return kinds.Int8WeightOnlyConfig()
    if spec.quantize == "fp8":
        return kinds.Float8WeightOnlyConfig()
    if dtype != "bfloat16":
        raise CannotLoadError(f"--quantize int4 computes in bfloat16: leave --dtype {dtype} out")
    group_size = _group_size(directory)
    if spec.device.startswith("cuda"):  # the layouts that torch itself multiplies with, without further packages
        return kinds.Int4WeightOnlyConfig(group_size=group_size, int4_packing_format="tile_packed_to_4d")
    prototypes: Any = importlib.import_module("torchao.prototype.quantization.int4")
    return prototypes.PrototypeInt4WeightOnlyConfig(group_size=group_size)


def _group_size(directory: Path) -> int:
    """Return the largest group that fits the rows of all matrices."""
    try:
        widths = {tensor.shape[1] for tensor in read_tensors(directory).values() if len(tensor.shape) == 2}
    except ModelError as error:
        raise CannotLoadError(str(error)) from None
    for size in _GROUPS:
        if all(width % size == 0 for width in widths):
            return size
    odd = ", ".join(str(width) for width in sorted(widths) if width % _GROUPS[-1])
    raise CannotLoadError(
        f"--quantize int4 needs rows of a multiple of {_GROUPS[-1]} weights, and {directory} has some of {odd}; "
        f"use --quantize int8, or {ANOTHER_ENGINE}"
    )


def check_coverage(model: Any, spec: EngineSpec) -> None:  # noqa: ANN401 - transformers' models are untyped
    """Raise CannotLoadError if much of a model stays as it was: the memory would not be saved."""
    outer = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    kept = {id(part.weight) for part in outer}
    matrices = {name: one for name, one in model.named_parameters() if one.dim() > 1 and id(one) not in kept}
    left = {name: one.numel() for name, one in matrices.items() if not is_quantised(one)}
    most = _LEFT_SHARE * sum(one.numel() for one in matrices.values())
    if sum(left.values()) > most:
        raise CannotLoadError(
            f"--quantize {spec.quantize} does not reach most of {spec.model} ({enumerate_names(sorted(left))}): its "
            f"weights are not where torchao looks for them; leave --quantize out, or use {ANOTHER_ENGINE}"
        )
    if left:
        log.warning("%s: these stay in 16 or 32 bits: %s", spec.model, enumerate_names(sorted(left)))


def is_quantised(tensor: torch.Tensor) -> bool:
    """Say whether a tensor is one in name only: packed numbers and scales that torch is told to multiply with."""
    return hasattr(tensor, "__tensor_flatten__")


def plain_tensors(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors, and in place of quantised ones what they are made of: scales show if something was not finite."""
    for name, tensor in named:
        if is_quantised(tensor):
            inner: list[str] = cast("Any", tensor).__tensor_flatten__()[0]
            yield from plain_tensors((name, getattr(tensor, part)) for part in inner)
        else:
            yield name, tensor
