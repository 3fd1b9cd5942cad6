"""How much an engine does at once: sequences beside each other, tokens of prompts in a step, tokens in its pool."""

from __future__ import annotations

import dataclasses
import logging
from typing import Final

from ..base import CannotLoadError, EngineSpec
from .dry_run import DryRun
from .hf_loader import Loaded
from .schedule import SchedulerLimits
from .sequence_table import RECORDED

log = logging.getLogger(__name__)
_PLAIN_ROWS: Final = 16
"""Requests beside each other where sequences are computed one by one: a step takes as much longer as there are more."""
_DEVICE_ROWS: Final = (64, 128, 256)
"""On a GPU a step of any of them takes about as long, up to where it computes longer than it reads the weights. More
rows are worth their tables and graphs where the pool has room for a text of this length in each:"""
_ROW_TOKENS: Final = 2048
_CPU_CHUNK: Final = 128
"""Of the mode in which pieces are all alike. Else they are as long as measured times allow (prompt_pace.py)."""
_EXACT_CHUNK: Final = 512
"""With deterministic=1 every piece is filled up to it."""
_IDLE_CHUNK: Final = 4096
"""As long as nobody waits for a token: longer pieces make no GPU faster, and a newcomer waits for the end of one."""
_PIECE_S: Final = 0.03
"""What a piece may add to the time between two tokens of those who run; a reader does not see it."""
_PIECES: Final = (256, 2048)
"""Bounds of what is worked out from that: shorter ones leave a GPU idle, and the clock may have been wrong."""
_CPU_KV_MIB: Final = 1024
_KV_SHARE: Final = 0.85
"""Of what is free after loading the pool takes about so much, for a first guess at the rows."""
SPARE_MIB: Final = 1024
"""What has to stay free on a GPU beside weights and pool, before a step was seen."""
MARGIN_MIB: Final = 256
"""Stays free on a GPU whatever was seen; a model that does not leave so much is refused before it is loaded."""
_GRAPH_MIB: Final = 10
"""Of the driver, for each graph: some hundred nodes with their arguments."""
_ROW_BYTES: Final = 9 + 16
"""For each row and id: the tables of counts, marks and biases, and what the sampler of recorded steps keeps."""
_MORE: Final = 1.1
"""A step of another mix of lengths may take a little more than the one that was seen."""
_LEAST_CONTEXT: Final = 64


def is_on(spec: EngineSpec, name: str, *, default: bool) -> bool:
    """Say whether an option that is 0 or 1 is set."""
    return spec.options.get(name, str(int(default))) == "1"


def plain_rows(spec: EngineSpec) -> int:
    """Return the slots of an engine that computes sequence by sequence."""
    return spec.slots or _PLAIN_ROWS


def plain_limits(spec: EngineSpec, loaded: Loaded, kv_tokens: int) -> SchedulerLimits:
    """Return the limits of an engine that computes sequence by sequence."""
    return SchedulerLimits(
        slots=plain_rows(spec),
        context=min(loaded.context, kv_tokens),
        chunk_tokens=spec.count("chunk", _CPU_CHUNK),
        may_reuse=is_on(spec, "reuse", default=True),
        is_deterministic=is_on(spec, "deterministic", default=False),
    )


def device_limits(spec: EngineSpec, loaded: Loaded, free_bytes: int) -> SchedulerLimits:
    """Return the limits of an engine on a GPU, as far as they are known before a step was seen."""
    is_exact = is_on(spec, "deterministic", default=False)
    chunk = spec.count("chunk", _EXACT_CHUNK)
    is_given = is_exact or "chunk" in spec.options
    rows = spec.slots or (_DEVICE_ROWS[0] if is_exact else _rows_by_memory(spec, loaded, free_bytes))
    return SchedulerLimits(
        slots=rows,
        context=loaded.context,
        chunk_tokens=chunk,
        idle_chunk_tokens=chunk if is_given else _IDLE_CHUNK,
        may_reuse=is_on(spec, "reuse", default=True),
        is_deterministic=is_exact,
    )


def _rows_by_memory(spec: EngineSpec, loaded: Loaded, free_bytes: int) -> int:
    pool_bytes = spec.number("kv_mib", 0) * 2**20 if "kv_mib" in spec.options else _KV_SHARE * free_bytes
    tokens = int(pool_bytes) // loaded.kv_bytes_per_token
    length = min(_ROW_TOKENS, loaded.context)
    return max((rows for rows in _DEVICE_ROWS if tokens >= rows * length), default=_DEVICE_ROWS[0])


def paced(spec: EngineSpec, limits: SchedulerLimits, seen: DryRun) -> SchedulerLimits:
    """Set how many tokens of prompts a step takes, from how long a piece took; what was asked for stays."""
    if limits.is_deterministic:
        return limits
    if "chunk" in spec.options:
        chunk = min(limits.chunk_tokens, seen.tokens)
        return dataclasses.replace(limits, chunk_tokens=chunk, idle_chunk_tokens=chunk)
    least, most = _PIECES
    in_time = int(seen.tokens * _PIECE_S / max(seen.seconds, 1e-6)) // 64 * 64
    chunk = min(max(in_time, least), most, seen.tokens)
    return dataclasses.replace(limits, chunk_tokens=chunk, idle_chunk_tokens=seen.tokens)


def reserve(seen: DryRun, limits: SchedulerLimits, vocabulary: int, *, has_graphs: bool) -> int:
    """Return the bytes of a GPU that are not for the pool: a step, the tables of the slots, the graphs."""
    graphs = seen.frames * len(RECORDED) * (_GRAPH_MIB << 20) if has_graphs else 0
    return int(seen.most_bytes * _MORE) + limits.slots * vocabulary * _ROW_BYTES + graphs + (MARGIN_MIB << 20)


def plan_tokens(spec: EngineSpec, loaded: Loaded, rows: int, left_bytes: int) -> int:
    """Size the pool: at most every slot full, and no more than memory bears, if need be less than one full context.

    `left_bytes`: what a GPU has for it. Raises ValueError if there is no room for a request at all, or none for as
    large a one as was asked for.
    """
    if "kv_mib" in spec.options:
        budget = int(spec.number("kv_mib", 0) * 2**20)
    elif loaded.is_cuda:
        budget = left_bytes
    else:
        budget = _CPU_KV_MIB << 20
    affordable = max(0, budget) // loaded.kv_bytes_per_token
    lack = ValueError if loaded.is_cuda and "kv_mib" not in spec.options else CannotLoadError  # others may free memory
    if affordable < min(_LEAST_CONTEXT, loaded.context):
        text = f"{spec.model}: there is memory for {affordable} tokens of keys and values on {spec.device}, too few"
        raise lack(f"{text}; use a smaller model or type (--dtype), or raise --engine-opt kv_mib=")
    if spec.max_model_len > affordable:
        raise lack(
            f"--max-model-len {spec.max_model_len} is more than there is memory for: keys and values of {affordable} "
            f"tokens fit on {spec.device}; lower it, or raise --engine-opt kv_mib="
        )
    if affordable < loaded.context:
        text = "%s: memory bears %d tokens of keys and values; the context is bounded to that (the model's is %d)"
        log.warning(text, spec.model, affordable, loaded.context)
    return min(affordable, rows * loaded.context)
