"""Do GPU, driver, torch and compiler of a machine fit together, and what does one run where they do not?

Judges facts that `cuda_facts.py` gathers. The one owner of the words: `zmqrt doctor`, the log of a worker and the
reason of a device that cannot serve say the same. Which build of torch runs where is known to `torch_builds.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from . import torch_builds
from .memory_fit import gib
from .nvidia_driver import NO_BINDINGS, DriverReport, Gpu, visible_gpus

_ON_CPU: Final = "models run on the CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """What torch says of itself. `built_for` is the CUDA version of its build, None of one without CUDA."""

    version: str
    built_for: str | None = None
    has_cuda: bool = False
    devices: int = 0
    architectures: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaFacts:
    """What was found on a machine.

    Attributes:
        setting: CUDA_VISIBLE_DEVICES.
        kernel_driver: Version of the driver in the kernel, which a container sees too.
        pci_gpus: How many NVIDIA GPUs the bus has.
        missing_files: Of the driver's device files.
        closed_files: Those that this user may not open.
        compiler: What Triton would call.
        headers: Where Python.h should be; empty if it is there.
        installer: apt or dnf, if one of them is here.
    """

    driver: DriverReport = DriverReport()
    setting: str | None = None
    kernel_driver: str = ""
    pci_gpus: int = 0
    missing_files: tuple[str, ...] = ()
    closed_files: tuple[str, ...] = ()
    is_container: bool = False
    torch: TorchBuild | None = None
    compiler: str = ""
    headers: str = ""
    python: str = "3"
    installer: str = ""

    @property
    def usable(self) -> list[Gpu]:
        """The devices that a worker would use."""
        return visible_gpus(self.driver.gpus, self.setting)

    @property
    def has_gpu(self) -> bool:
        """Whether there is any sign of one."""
        return bool(self.driver.gpus or self.kernel_driver or self.pci_gpus)

    @property
    def driver_cuda(self) -> tuple[int, int] | None:
        """The newest CUDA that the driver knows, as it says or as its version tells."""
        return self.driver.cuda or torch_builds.driver_knows(self.driver.version or self.kernel_driver)


class Diagnosis(NamedTuple):
    """What was looked at, how it is, and what to do; a note works, but somebody may want to know.

    With `is_lasting` nothing but the remedy changes it.
    """

    name: str
    verdict: Literal["ok", "note", "bad"]
    found: str
    remedy: str = ""
    is_lasting: bool = False

    @property
    def words(self) -> str:
        """All of it in one line."""
        return f"{self.found}; {self.remedy}" if self.remedy else self.found


def diagnose(facts: CudaFacts) -> list[Diagnosis]:
    """Look at GPUs, torch and what Triton needs, in this order: each needs the one before it."""
    return [judge_gpus(facts), judge_torch(facts), *judge_compiler(facts)]


# --- devices ---------------------------------------------------------------------------------------------------------


def judge_gpus(facts: CudaFacts) -> Diagnosis:
    """Find a GPU that no worker would use."""
    gpus, usable = facts.driver.gpus, facts.usable
    names = Counter(f"{gpu.name} ({gib(gpu.memory_bytes)})" for gpu in gpus)
    found = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in names.items())
    slices = sum(len(gpu.slices or ()) for gpu in gpus)
    if usable:
        parts = f", {slices} MIG slices" if slices else ""
        hidden = len(visible_gpus(gpus, None)) - len(usable)
        unseen = f", {hidden} of them hidden by CUDA_VISIBLE_DEVICES" if hidden > 0 else ""
        return Diagnosis("GPUs", "ok", found + parts + unseen)
    if gpus and all(gpu.slices == () for gpu in gpus):
        remedy = "run: sudo nvidia-smi mig -cgi 0 -C (one slice of all of it), or sudo nvidia-smi -mig 0 (no slices)"
        return Diagnosis("GPUs", "bad", f"{found} in MIG mode without a slice, so CUDA sees none: {_ON_CPU}", remedy)
    if gpus:
        remedy = "run: unset CUDA_VISIBLE_DEVICES, if they are meant to be used"
        return Diagnosis("GPUs", "note", f"{found}, hidden by CUDA_VISIBLE_DEVICES={facts.setting}: {_ON_CPU}", remedy)
    return _judge_absence(facts)


def _judge_absence(facts: CudaFacts) -> Diagnosis:
    """Say why the driver's library lists nothing, from the cause that hides all others to the last one."""
    why = facts.driver.why_none
    if not facts.has_gpu:
        remedy = "if there is one, install NVIDIA's driver: sudo ubuntu-drivers install, or nvidia.com/drivers"
        return Diagnosis("GPUs", "note", f"no GPU: {_ON_CPU} ({why})", remedy)
    if facts.kernel_driver and why == NO_BINDINGS:
        found = f"NVIDIA's driver is here, but nothing to ask it with: {_ON_CPU} (nvidia-ml-py is not installed)"
        return Diagnosis("GPUs", "bad", found, "run: pip install nvidia-ml-py")
    if not facts.kernel_driver:
        found = f"{facts.pci_gpus} NVIDIA GPUs on the bus, but no driver for them: {_ON_CPU} ({why})"
        remedy = "run: sudo ubuntu-drivers install && sudo reboot (elsewhere: nvidia.com/drivers)"
        return Diagnosis("GPUs", "note", found, remedy)
    if "mismatch" in why.lower():
        found = f"NVIDIA's driver was updated, and the old one still runs: {_ON_CPU} ({why})"
        return Diagnosis("GPUs", "bad", found, "run: sudo reboot")
    if facts.is_container and facts.missing_files:
        found = f"this machine has a GPU, but this container has not: {_ON_CPU} ({facts.missing_files[0]} is missing)"
        remedy = (
            "start it with: docker run --gpus all … (needs nvidia-container-toolkit; Kubernetes: nvidia.com/gpu: 1)"
        )
        return Diagnosis("GPUs", "bad", found, remedy)
    return _judge_files(facts, "GPUs", f"NVIDIA's driver is here, but it lists no GPU: {_ON_CPU} ({why})")


def _judge_files(facts: CudaFacts, name: str, found: str) -> Diagnosis:
    if facts.missing_files:
        found = f"{found}; {', '.join(facts.missing_files)} is missing"
        return Diagnosis(name, "bad", found, "run: sudo nvidia-modprobe -u -c 0, or restart the machine")
    if facts.closed_files:
        found = f"{found}; this user may not open {', '.join(facts.closed_files)}"
        return Diagnosis(name, "bad", found, 'run: sudo usermod -aG video,render "$USER", and log in again')
    remedy = "run nvidia-smi: a GPU that cannot be used is in an error state, or in use by others alone"
    return Diagnosis(name, "bad", found, f"{remedy}; after an update of the driver, restart the machine")


# --- torch -----------------------------------------------------------------------------------------------------------


def judge_torch(facts: CudaFacts) -> Diagnosis:
    """Compare torch with the GPUs and their driver: the trouble is nearly always between two of them."""
    torch, usable = facts.torch, facts.usable
    if torch is None:
        remedy = "to serve models here, run: pip install 'zmqrt[worker,models]'; a client needs none of it"
        return Diagnosis("torch", "note", "not installed: no model runs here but the mock", remedy)
    if torch.error:
        found = f"{torch.version} cannot be imported: {torch.error}"
        return Diagnosis("torch", "bad", found, "run: pip install --force-reinstall torch", is_lasting=True)
    found = f"{torch.version}, built for {f'CUDA {torch.built_for}' if torch.built_for else 'the CPU'}"
    if not usable:
        return Diagnosis("torch", "ok", found)
    if torch.built_for is None:
        found = f"{found}, but there is a GPU ({usable[0].name})"
        return Diagnosis("torch", "bad", found, _reinstall(facts), is_lasting=True)
    built_for = torch_builds.read_version(torch.built_for)
    is_before = facts.driver_cuda is not None and facts.driver_cuda[0] < built_for[0]
    if is_before and not torch.has_cuda:  # with NVIDIA's packages for forward compatibility it has
        remedy = f"{_reinstall(facts)}; or update NVIDIA's driver to {torch_builds.driver_for(built_for)} or later"
        return Diagnosis("torch", "bad", f"{found}, but {_driver(facts)} at most", remedy, is_lasting=True)
    unable = [gpu for gpu in usable if not torch_builds.has_code(torch.architectures, gpu.capability)]
    if unable:
        return _judge_code(facts, torch, found, unable[0])
    return _judge_use(facts, torch, found, built_for)


def _judge_use(facts: CudaFacts, torch: TorchBuild, found: str, built_for: tuple[int, int]) -> Diagnosis:
    """Versions fit; does it work?"""
    count = len(facts.usable)
    is_older = facts.driver_cuda is not None and facts.driver_cuda < built_for
    if not torch.has_cuda and is_older:
        remedy = f"{_reinstall(facts)}; or update NVIDIA's driver"
        return Diagnosis("torch", "bad", f"{found}, but it cannot use the GPU: {_driver(facts)} at most", remedy)
    if not torch.has_cuda:
        return _judge_files(facts, "torch", f"{found}, but it cannot use the GPU")
    found += f", sees {torch.devices} of {count} GPUs"
    if torch.devices < count:
        return _judge_files(facts, "torch", found)
    if is_older:
        remedy = f"works; if kernels cannot be loaded, update NVIDIA's driver, or {_reinstall(facts)}"
        return Diagnosis("torch", "note", f"{found}; {_driver(facts)}, an older version", remedy)
    return Diagnosis("torch", "ok", found)


def _judge_code(facts: CudaFacts, torch: TorchBuild, found: str, gpu: Gpu) -> Diagnosis:
    """Say what to do about a card that this build has no code for."""
    assert gpu.capability is not None
    major, minor = gpu.capability
    has = ", ".join(torch.architectures)
    found = f"{found}, has no code for {gpu.name} (compute capability {major}.{minor}; it has {has})"
    return Diagnosis("torch", "bad", found, _reinstall(facts), is_lasting=True)


def _reinstall(facts: CudaFacts) -> str:
    """Name the command that installs a build for this driver and these cards, or what there has to be first."""
    return torch_builds.install(facts.driver_cuda, [gpu.capability for gpu in facts.usable])


def _driver(facts: CudaFacts) -> str:
    known = facts.driver_cuda or (0, 0)
    return f"NVIDIA's driver {facts.driver.version or facts.kernel_driver} knows CUDA {known[0]}.{known[1]}"


# --- what Triton needs -----------------------------------------------------------------------------------------------


def judge_compiler(facts: CudaFacts) -> Iterator[Diagnosis]:
    """Find out whether Triton can build what starts its kernels: a few lines of C against Python.h, once a kernel."""
    if not facts.usable or facts.torch is None:
        return
    if facts.compiler and not facts.headers:
        yield Diagnosis("compiler", "ok", facts.compiler)
        return
    lacks = [*([] if facts.compiler else ["a C compiler"]), *([f"Python.h ({facts.headers})"] if facts.headers else [])]
    found = f"{' and '.join(lacks)} is missing: Triton's kernels cannot be built, and plain torch is slower"
    yield Diagnosis("compiler", "note", found, _install(facts))


def _install(facts: CudaFacts) -> str:
    wanted = [*([] if facts.compiler else ["gcc"]), *([f"python{facts.python}-dev"] if facts.headers else [])]
    if facts.installer == "dnf":
        wanted = [word.replace(f"python{facts.python}-dev", "python3-devel") for word in wanted]
        return f"run: sudo dnf install {' '.join(wanted)}"
    return f"run: sudo apt install {' '.join(wanted)}"
