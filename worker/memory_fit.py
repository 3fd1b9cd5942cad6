"""Does a model fit the memory of a device? Asked of its configuration and the headers of its weights, before loading.

Counted is the least that serving takes, so what would fit is never refused: the weights in the type that was asked for,
keys and values of one sequence, and what the caller wants to keep free. Parts that may not be loaded (a tied head, the
vision of a model with several parts) are left out. Knows neither torch nor where memory is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

from .context import context_of
from .model_directory import ModelDirectory
from .model_files import Stored

CATALOGUE: Final = {"smollm2-135m": 134_515_008}
"""Generators of `zmqrt models` and how many parameters each has, for those whose own model is too large."""
_ITEM_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_AS: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_LEAST_TOKENS: Final = 64
"""An engine that has no room for so many keys and values serves nothing; a shorter context is not offered either."""
_QUANTISED_BITS: Final = {"int8": 8, "fp8": 8, "int4": 4}
"""Of each weight; the scales beside them are not counted."""
_HEADS: Final = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS: Final = ("embed", "wte", "wpe")
_BUFFERS: Final = ("attn.bias", "masked_bias", "inv_freq", "position_ids")
_NO_SIZE: Final = 1 << 32
"""No model has so many layers, heads or numbers: who says so says nothing, and the loader names it."""
_CLOSE_SHARE: Final = 0.1
"""What a step computes is not counted; with less than so much left over, it may be what does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory of a device. `limit` says what bounds it, if that is not the device itself."""

    device: str
    free_bytes: int
    total_bytes: int
    limit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPlan:
    """What of a request to serve a model decides how much memory it takes; 0 where nothing was asked for.

    Attributes:
        dtype: What weights, keys and values are computed in.
        quantize: In how many bits the weights of layers are made to be kept, if not in that type.
        is_mapped: Weights stored in that type stay in their file, and are read from there when they must be (CPU).
        kv_bytes: Bound of the pool that is reserved at once (`kv_mib` on a GPU).
        spare_bytes: What has to stay free beside weights and pool.
    """

    dtype: str
    is_mapped: bool
    quantize: str = "none"
    max_model_len: int = 0
    slots: int = 0
    kv_bytes: int = 0
    spare_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """The least that serving takes. `mapped_bytes` of the weights may stay on the disk, at the price of reading it."""

    weights_bytes: int
    mapped_bytes: int
    kv_token_bytes: int
    tokens: int
    spare_bytes: int

    @property
    def kv_bytes(self) -> int:
        """Keys and values of the tokens."""
        return self.kv_token_bytes * self.tokens

    @property
    def bytes(self) -> int:
        """What has to be there, or nothing is served."""
        return self.weights_bytes + self.kv_bytes + self.spare_bytes


@dataclass(frozen=True, slots=True)
class MemoryVerdict:
    """`close`: it may fit. `busy`: it would, were the device empty. `too_small`: it never will."""

    kind: Literal["fits", "close", "busy", "too_small"]
    words: str


def measure(model: ModelDirectory, plan: ServingPlan) -> MemoryNeed:
    """Count what a model needs under a plan."""
    weights, mapped = _weights(model, plan)
    per_token = _kv_token_bytes(model.config, plan.dtype)
    return MemoryNeed(
        weights_bytes=weights,
        mapped_bytes=mapped,
        kv_token_bytes=per_token,
        tokens=_tokens(model.config, plan, per_token),
        spare_bytes=plan.spare_bytes,
    )


def judge(name: str, model: ModelDirectory, plan: ServingPlan, memory: DeviceMemory) -> MemoryVerdict:
    """Compare need and memory; the words say what was counted, and what would fit if this does not."""
    need = measure(model, plan)
    counts = f"{_counted(need, plan)}; {_room(memory)}"
    counted = f"{name} needs {counts}"
    if need.bytes > memory.free_bytes:
        kind: Literal["too_small", "busy"] = "too_small" if need.bytes > memory.total_bytes else "busy"
        remedy = "; ".join([*_what_fits(model, plan, memory), _GO_ON])
        return MemoryVerdict(kind, f"there is too little memory to load {name}: it needs {counts}; {remedy}")
    if need.bytes + need.mapped_bytes > memory.free_bytes:
        words = f"{counted}, so the weights would be read from their file again and again, and answers be slow"
        return MemoryVerdict("close", f"{words}; {'; '.join(_what_fits(model, plan, memory)) or _ENLARGE}")
    if (need.bytes + need.mapped_bytes) * (1 + _CLOSE_SHARE) > memory.free_bytes:
        return MemoryVerdict("close", f"{counted}, which is close: what a step computes is not counted")
    return MemoryVerdict("fits", counted)


_GO_ON: Final = "to have it tried all the same: --engine-opt memory_check=0"
_ENLARGE: Final = "use a smaller model, or a machine with more memory"


def _weights(model: ModelDirectory, plan: ServingPlan) -> tuple[int, int]:
    """Return the bytes of the weights that are made anew, and of those that may stay in their file."""
    if model.config.get("quantization_config"):  # how many bits they have in memory is its method's affair
        return sum(end - begin for begin, end in (tensor.data_offsets for tensor in model.tensors.values())), 0
    item_bytes, bits = _ITEM_BYTES[plan.dtype], _QUANTISED_BITS.get(plan.quantize)
    made = mapped = 0
    for name, tensor in model.tensors.items():
        if not _is_surely_loaded(name, model.config):
            continue
        if bits and _is_of_a_layer(name, tensor):
            made += _items(tensor) * bits // 8
        elif plan.is_mapped and _STORED_AS.get(tensor.dtype) == plan.dtype:
            mapped += _items(tensor) * item_bytes
        else:
            made += _items(tensor) * item_bytes
    return made, mapped


def _items(tensor: Stored) -> int:
    return math.prod(tensor.shape)


def _is_of_a_layer(name: str, tensor: Stored) -> bool:
    """Say whether a tensor is a matrix that can be kept in fewer bits; embeddings and heads stay as they are."""
    return len(tensor.shape) == 2 and name not in _HEADS and not any(part in name for part in _EMBEDDINGS)


def _is_surely_loaded(name: str, config: Mapping[str, Any]) -> bool:
    if name.endswith(_BUFFERS):
        return False
    if isinstance(config.get("text_config"), dict) and "language_model" not in name:
        return False  # of several parts only the one for text is run
    return name not in _HEADS or config.get("tie_word_embeddings") is False


def _kv_token_bytes(config: Mapping[str, Any], dtype: str) -> int:
    """Return what one token costs in all layers; 0 if the configuration does not say it in the usual words."""
    part = config.get("text_config")
    text = cast("Mapping[str, Any]", part) if isinstance(part, dict) else config
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size")
    given = [text.get(name) for name in names]
    layers, heads, kv_heads, size, width = (one if isinstance(one, int) and 0 < one < _NO_SIZE else 0 for one in given)
    size = size or (width // heads if heads > 0 else 0)
    return max(0, 2 * layers * (kv_heads or heads) * size * _ITEM_BYTES[dtype])


def _tokens(config: dict[str, Any], plan: ServingPlan, per_token: int) -> int:
    """Return for how many tokens there has to be room: one sequence, or the pool that is reserved at once."""
    context = plan.max_model_len or _context(config)
    least = plan.max_model_len or min(_LEAST_TOKENS, context)
    if not plan.kv_bytes or not per_token:
        return least
    return max(least, min(plan.kv_bytes // per_token, max(1, plan.slots) * context))


def _context(config: dict[str, Any]) -> int:
    try:
        return context_of(config) or _LEAST_TOKENS
    except ValueError:  # the loader names it
        return _LEAST_TOKENS


# --- words -----------------------------------------------------------------------------------------------------------


def _counted(need: MemoryNeed, plan: ServingPlan) -> str:
    weights = need.weights_bytes + need.mapped_bytes
    kept = plan.dtype if plan.quantize == "none" else f"{plan.quantize} and {plan.dtype}"
    parts = [f"weights as {kept} {gib(weights)}"]
    if need.kv_token_bytes:
        parts.append(f"keys and values of {need.tokens} tokens {gib(need.kv_bytes)}")
    if need.spare_bytes:
        parts.append(f"{gib(need.spare_bytes)} to compute in")
    return f"{gib(need.bytes + need.mapped_bytes)} ({', '.join(parts)})"


def _room(memory: DeviceMemory) -> str:
    limit = f", bounded by {memory.limit}" if memory.limit else ""
    return f"{gib(memory.free_bytes)} of {gib(memory.total_bytes)} are free on {memory.device}{limit}"


def gib(size_bytes: int) -> str:
    """Write a size as people read it."""
    return f"{size_bytes / (1 << 30):.1f} GiB" if size_bytes >= 1 << 30 else f"{size_bytes / (1 << 20):.0f} MiB"


def _what_fits(model: ModelDirectory, plan: ServingPlan, memory: DeviceMemory) -> list[str]:
    """List what to change so that it fits: this model first, then others."""
    ours = list(_changes(model, plan, memory))
    return [*(f"with {change} it fits" for change in ours), *_other_models(plan, memory)]


def _changes(model: ModelDirectory, plan: ServingPlan, memory: DeviceMemory) -> Iterator[str]:
    """Yield what helps: another type of 16 bits, and fewer bits only where that does not do."""
    is_large = _ITEM_BYTES[plan.dtype] > _ITEM_BYTES["bfloat16"]
    types = [plan, *([replace(plan, dtype="bfloat16")] if is_large else [])]
    found = list(_changed(model, plan, types, memory))
    if not found and plan.quantize == "none" and not model.config.get("quantization_config"):
        fewer = [replace(one, quantize=quantize) for quantize in ("int8", "int4") for one in types]
        found = list(_changed(model, plan, fewer, memory))[:1]
    yield from found


def _changed(
    model: ModelDirectory, plan: ServingPlan, others: Iterable[ServingPlan], memory: DeviceMemory
) -> Iterator[str]:
    for other in others:
        words = [f"--dtype {other.dtype}"] if other.dtype != plan.dtype else []
        words += [f"--quantize {other.quantize}"] if other.quantize != plan.quantize else []
        shortened = _shortened(model, other, memory)
        if shortened is not None and (words or shortened):
            need = measure(model, other)
            total = f" ({gib(need.bytes + need.mapped_bytes)})" if not shortened else ""
            yield " and ".join([*words, *shortened]) + total


def _shortened(model: ModelDirectory, plan: ServingPlan, memory: DeviceMemory) -> list[str] | None:
    """Return which bounds of keys and values make it fit; none are needed if it fits as it is, None if none help."""
    need = measure(model, plan)
    left = _advised(memory) - need.weights_bytes - need.mapped_bytes - need.spare_bytes
    if left >= need.kv_bytes:
        return []
    tokens = left // need.kv_token_bytes if need.kv_token_bytes else 0
    if tokens < _LEAST_TOKENS:
        return None
    words: list[str] = []
    if plan.max_model_len > tokens:
        words.append(f"--max-model-len {tokens // _LEAST_TOKENS * _LEAST_TOKENS}")
    if plan.kv_bytes:
        words.append(f"--engine-opt kv_mib={left >> 20}")
        fewer = tokens // (plan.max_model_len or _context(model.config))
        if 0 < fewer < plan.slots:
            words[-1] += f" or --slots {fewer}"
    return words


def _advised(memory: DeviceMemory) -> int:
    """Return how much may be counted of what is free: what is said to fit must not be close."""
    return int(memory.free_bytes / (1 + _CLOSE_SHARE))


def _other_models(plan: ServingPlan, memory: DeviceMemory) -> Iterator[str]:
    """Say how large a model fits, in the smaller type, and which of those we know."""
    most = max(0, _advised(memory) - plan.spare_bytes) // _ITEM_BYTES["bfloat16"]
    if most >= 10**8:
        yield f"models of up to {most / 1e9:.1f} billion parameters fit as bfloat16"
    known = [name for name, parameters in CATALOGUE.items() if parameters <= most]
    if known:
        yield f"{max(known, key=CATALOGUE.__getitem__)} does"
