"""Judge driver, GPUs, torch and Triton together: the trouble is nearly always between two of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from ...protocol.checkup import Checkup, DriverFacts, TorchFacts
from .check import Check, Verdict, count_of, parse_version, show_bytes, show_version

GROUP: Final = "worker"
TORCH: Final = (2, 9)
_EXTRAS: Final = "run: pip install 'zmqrt[worker,models]'"
_ON_CPU: Final = "models run on the CPU"


def judge(here: Checkup) -> list[Check]:
    """Judge all of it."""
    return [_gpus(here), *_torch(here), *_triton(here)]


def _gpus(here: Checkup) -> Check:
    driver = here.driver
    if driver.gpus and driver.visible:
        hidden = len(driver.gpus) - driver.visible
        unseen = f", {hidden} of them hidden by CUDA_VISIBLE_DEVICES" if hidden > 0 else ""
        return Check(GROUP, "GPUs", "ok", f"{_listed(driver)}{unseen}; driver {driver.version}")
    if driver.gpus:
        found = f"{_listed(driver)}, hidden by CUDA_VISIBLE_DEVICES={here.cuda_visible_devices!r}: {_ON_CPU}"
        return Check(GROUP, "GPUs", "note", found, "unset CUDA_VISIBLE_DEVICES if they are meant to be used")
    if not driver.has_bindings and _may_have_gpu(here):
        found = f"nvidia-ml-py is not installed, so no worker finds the GPU: {_ON_CPU}"
        verdict: Verdict = "bad" if here.torch is not None else "note"  # without torch no worker is meant to run here
        return Check(GROUP, "GPUs", verdict, found, "run: pip install 'nvidia-ml-py>=12'")
    if driver.is_loaded:
        found = f"the kernel has an NVIDIA driver, but it lists no GPU ({driver.error or 'none'})"
        remedy = "run nvidia-smi; after an update of the driver, restart the machine (or give the container its GPUs)"
        return Check(GROUP, "GPUs", "bad", found, remedy)
    why = f" ({driver.error})" if driver.error else ""
    return Check(GROUP, "GPUs", "note", f"no GPU: {_ON_CPU}{why}", "if there is one, install NVIDIA's driver")


def _may_have_gpu(here: Checkup) -> bool:
    return here.driver.is_loaded or (here.torch is not None and here.torch.has_cuda)


def _listed(driver: DriverFacts) -> str:
    counts = Counter(f"{one.name} ({show_bytes(one.memory_bytes)})" for one in driver.gpus)
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def _torch(here: Checkup) -> Iterator[Check]:
    torch = here.torch
    if torch is None:
        found = "not installed: no model runs here but the mock"
        yield Check(GROUP, "torch", "note", found, f"to serve models here, {_EXTRAS}; a client needs none of it")
    elif torch.error:
        found = f"{torch.version} cannot be imported: {torch.error}"
        yield Check(GROUP, "torch", "bad", found, f"run: pip install --force-reinstall 'torch>={show_version(TORCH)}'")
    elif parse_version(torch.version) < TORCH:
        remedy = f"run: pip install --upgrade 'torch>={show_version(TORCH)}'"
        yield Check(GROUP, "torch", "bad", f"{torch.version} is too old", remedy)
    else:
        yield _cuda(torch, here.driver)


def _cuda(torch: TorchFacts, driver: DriverFacts) -> Check:
    visible = driver.visible
    found = f"{torch.version}, built for {f'CUDA {torch.built_for}' if torch.built_for else 'the CPU'}"
    if torch.has_cuda and torch.devices >= visible:
        return Check(GROUP, "torch", "ok", f"{found}, sees {count_of(torch.devices, 'GPU')}")
    if torch.has_cuda:
        remedy = "run nvidia-smi: a GPU that torch cannot use is in an error state, in use by others alone, or too old"
        return Check(GROUP, "torch", "bad", f"{found}, sees {torch.devices} of {visible} GPUs", remedy)
    if not visible:
        return Check(GROUP, "torch", "ok", found)
    if torch.built_for is None:
        remedy = "install a build with CUDA; pytorch.org names the command for this system"
        return Check(GROUP, "torch", "bad", f"{found}, but there is a GPU", remedy)
    remedy = (
        f"update NVIDIA's driver (it is {driver.version}) to one that knows CUDA {torch.built_for}, or install a torch "
        "that is built for an older CUDA"
    )
    return Check(GROUP, "torch", "bad", f"{found}, but it cannot use the GPU", remedy)


def _triton(here: Checkup) -> Iterator[Check]:
    if here.triton is not None:
        yield Check(GROUP, "Triton", "ok", here.triton)
    elif here.driver.visible and here.torch is not None:
        found = "not installed: the engine uses its slower operations on GPUs"
        yield Check(GROUP, "Triton", "note", found, "run: pip install triton (in the version that torch names)")
