"""What a loader says of the weights it has read, and the numbers themselves: is this the model that its files promise?

transformers fills what is missing with random numbers and goes on; a model so made answers, and nothing it says has a
meaning. Here that is an error, and one that no second try mends.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from ...model_directory import enumerate_names
from ..base import CannotLoadError

log = logging.getLogger(__name__)
_HARMLESS: Final = re.compile(
    r"(^|\.)(position_ids|num_batches_tracked|masked_bias|rotary_emb\.\w+|rope_freqs\.weight|rope\.freqs"
    r"|(attn|attention)\.bias)$"
    r"|(^|\.)(vision\w*|visual|audio\w*|image\w*|multi_modal_projector|mm_projector|vit|mtp\w*|talker|v_head|embed_vision)\."
)
"""Tensors that a text model may leave alone: tables and counters of old checkpoints, eyes, ears, heads for training."""


def check_report(report: Mapping[str, Any], where: str) -> None:
    """Look at transformers' `loading_info`. Raises CannotLoadError that names the tensors."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise CannotLoadError(
            f"{where} lacks {_count(missing)} that its config.json asks for: {enumerate_names(missing)}; "
            "random numbers would stand in for them. Fetch the model again, or the config.json that belongs to it"
        )
    mismatched = sorted((str(name), list(there), list(wanted)) for name, there, wanted in report["mismatched_keys"])
    if mismatched:
        words = [f"{name} is {there}, and {wanted} by config.json" for name, there, wanted in mismatched]
        raise CannotLoadError(f"{where} has tensors of other shapes than its config.json: {enumerate_names(words)}")
    unexpected = sorted(name for name in report["unexpected_keys"] if not _HARMLESS.search(name))
    if unexpected:
        raise CannotLoadError(
            f"{where} has {_count(unexpected)} that its config.json knows nothing of: {enumerate_names(unexpected)}; "
            "without them it is another model. Fetch the config.json that belongs to the weights"
        )
    if report["error_msgs"]:
        raise CannotLoadError(f"{where} was not loaded: {'; '.join(map(str, report['error_msgs']))[:500]}")


@torch.inference_mode()
def check_numbers(tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Raise CannotLoadError if any weight is not finite. Reads each number once: less than loading took."""
    bad: list[str] = []
    empty: list[str] = []
    is_half = False
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
            continue
        least, most = _range(tensor)
        if not (least.isfinite() and most.isfinite()):  # both are NaN if any number is
            bad += [name] if name not in bad else []
            is_half |= tensor.dtype == torch.float16
        elif tensor.dim() > 1 and least == most == 0:
            empty.append(name)
    if bad:
        raise CannotLoadError(
            f"{where} is damaged: it has {_count(bad)} with numbers that are not finite ({enumerate_names(bad)}); "
            f"fetch it again{', or try --dtype bfloat16: float16 ends at 65,504' if is_half else ''}"
        )
    if empty:
        log.warning(
            "%s: these tensors are all zeros, as in a file that was never filled: %s", where, enumerate_names(empty)
        )


def _range(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        least, most = torch.aminmax(tensor)
    except (RuntimeError, NotImplementedError):  # eight bits and fewer have no comparison
        least, most = torch.aminmax(tensor.float())
    return least, most


def check_logits(logits: torch.Tensor, where: str) -> None:
    """Raise CannotLoadError if a model says nothing: numbers that are not finite, or all the same."""
    if not bool(logits.isfinite().all()):
        raise CannotLoadError(
            f"{where} computes numbers that are not finite: its files are damaged, or its numbers are too large for "
            f"{str(logits.dtype).removeprefix('torch.')} (--dtype)"
        )
    if bool((logits == logits[..., :1]).all()):
        raise CannotLoadError(f"{where} finds every token equally likely: its weights are empty; fetch it again")


def _count(names: list[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
