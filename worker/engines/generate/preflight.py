"""What is asked of a device before a model is loaded onto it: half a minute later it would fail with less to say."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Final

import torch

from ...cuda_facts import gather, torch_build
from ...cuda_setup import CudaFacts, judge_compiler, judge_gpus, judge_torch
from ...host_memory import host_memory
from ...memory_fit import DeviceMemory, ServingPlan, judge
from ...model_directory import ModelDirectory, read_tensors
from ...model_files import ModelError, read_json_object
from ...nvidia_driver import ask_driver
from ..base import CannotLoadError, EngineSpec
from ..oom import OutOfMemoryError
from .hf_loader import dtype_of

ROOM_S: Final = 45.0
"""How long others have to give memory back: a node that takes the place of another starts while that one drains."""
_LOOK_EVERY_S: Final = 1.0
log = logging.getLogger(__name__)


def check_device(spec: EngineSpec) -> None:
    """Compare torch with the GPU and its driver, in the words of `zmqrt doctor`.

    Raises CannotLoadError if they do not fit together, and RuntimeError, so that it is tried again, if they do and the
    GPU cannot be used all the same.
    """
    if not spec.device.startswith("cuda"):
        return
    facts = _facts()
    if not facts.usable and facts.torch is not None and facts.torch.has_cuda:
        return  # what lists GPUs is not there, and torch has found one all the same
    if not facts.usable:
        raise RuntimeError(judge_gpus(facts).words)
    build = judge_torch(facts)
    if build.verdict == "bad":
        raise (CannotLoadError if build.is_lasting else RuntimeError)(f"torch {build.words}; or take --device cpu")


def why_no_kernels(error: str) -> str:
    """Say what Triton lacks on this machine, if that is why; else what it said."""
    lacks = [one.words for one in judge_compiler(_facts()) if one.verdict != "ok"]
    return lacks[0] if lacks else error


def _facts() -> CudaFacts:
    return gather(ask_driver(), os.environ, torch=torch_build())


def check_memory(spec: EngineSpec, *, spare_bytes: int, must_fit: bool) -> None:
    """Compare what the model needs at least with what its device has free.

    Raises CannotLoadError if it is more than there is at all, and OutOfMemoryError, so that it is tried again, if it is
    more than others leave free at the moment. Without `must_fit` that is only said.
    """
    model, memory = _model(Path(spec.model_path)), _memory(spec)
    if model is None or memory is None:
        return
    plan = _plan(spec, spare_bytes)
    verdict = judge(spec.model, model, plan, memory)
    give_up_at = time.monotonic() + ROOM_S
    while must_fit and verdict.kind == "busy" and time.monotonic() < give_up_at:
        time.sleep(_LOOK_EVERY_S)
        verdict = judge(spec.model, model, plan, _memory(spec) or memory)
    if verdict.kind == "fits":
        log.info("%s", verdict.words)
    elif verdict.kind == "close" or not must_fit:
        log.warning("%s", verdict.words)
    else:
        raise (CannotLoadError if verdict.kind == "too_small" else OutOfMemoryError)(verdict.words)


def _plan(spec: EngineSpec, spare_bytes: int) -> ServingPlan:
    is_cuda = spec.device.startswith("cuda")
    kv_mib = spec.options.get("kv_mib")
    return ServingPlan(
        dtype=dtype_of(spec),
        quantize=spec.quantize,
        is_mapped=not is_cuda,
        # On a CPU the pool has a bound of its own, whatever the context, and takes memory as it is written to.
        max_model_len=spec.max_model_len if is_cuda else 0,
        slots=spec.slots,
        kv_bytes=int(float(kv_mib) * 2**20) if is_cuda and kv_mib else 0,
        spare_bytes=spare_bytes if is_cuda and not kv_mib else 0,
    )


def _model(directory: Path) -> ModelDirectory | None:
    """Read what is needed; where that is not possible the loader says it better."""
    try:
        return ModelDirectory(read_json_object(directory / "config.json"), read_tensors(directory))
    except (ModelError, OSError):
        return None


def _memory(spec: EngineSpec) -> DeviceMemory | None:
    if not spec.device.startswith("cuda"):
        return host_memory()
    free, total = torch.cuda.mem_get_info(spec.device)
    return DeviceMemory(device=spec.device, free_bytes=free, total_bytes=total)
