"""What can attend to running sequences on a device, by name, each behind the same `Operation`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from zmqrt.worker.engines.generate import flash
from zmqrt.worker.engines.generate.attention import AttentionShape
from zmqrt.worker.engines.generate.flash import Operation
from zmqrt.worker.engines.generate.hf_loader import untyped

Make = Callable[[int, int, bool], Operation]
"""Makes one for at most so many sequences of so many tokens together; deterministic if so."""


def find(shape: AttentionShape, dtype: torch.dtype, device: str) -> tuple[dict[str, Make], dict[str, str]]:
    """Return what works here, and of the rest why it does not. The definition stands in where torch's does not."""
    why_not = {"flash": flash.why_not(shape, dtype, device), "triton": _why_no_splits(shape, dtype, device)}
    found: dict[str, Make] = {}
    of_pieces = flash.plain if why_not["flash"] else flash.flash
    found["definition" if why_not["flash"] else "flash"] = lambda _sequences, _tokens, _is_deterministic: of_pieces
    if why_not["triton"] is None:
        found["triton"] = _maker(shape, device, of_pieces)
    return found, {name: why for name, why in why_not.items() if why}


def _maker(shape: AttentionShape, device: str, of_pieces: Operation) -> Make:
    split_kv: Any = untyped("zmqrt.worker.engines.generate.split_kv")

    def make(sequences: int, tokens: int, is_deterministic: bool) -> Operation:  # noqa: FBT001 - see `Make`
        options = {"device": device, "is_deterministic": is_deterministic, "pieces": of_pieces}
        operation: Operation = split_kv.SplitKvAttention(shape, sequences, tokens, **options)
        return operation

    return make


def _why_no_splits(shape: AttentionShape, dtype: torch.dtype, device: str) -> str | None:
    if not device.startswith("cuda") and os.environ.get("TRITON_INTERPRET") != "1":
        return "there is no GPU"
    try:
        split_kv: Any = untyped("zmqrt.worker.engines.generate.split_kv")
    except ImportError as error:
        return str(error)
    why_not: str | None = split_kv.why_not(shape, dtype, device)
    return why_not
