"""GPUs, torch and models, judged."""

import msgspec
import pytest

from zmqrt.client.doctor import gpu, models
from zmqrt.client.doctor.check import Check
from zmqrt.protocol.checkup import CacheFacts, Checkup, DriverFacts, GpuFacts, TorchFacts, decode, encode

H100 = GpuFacts(name="NVIDIA H100", memory_bytes=80 << 30)
WITH_CUDA = TorchFacts(version="2.13.0", built_for="13.0", has_cuda=True, devices=2)
FOR_CPU = TorchFacts(version="2.13.0+cpu")
CACHE = CacheFacts(path="/c", is_there=True, is_writable=True, size_bytes=1 << 30, free_bytes=100 << 30)
GOOD = Checkup(
    torch=WITH_CUDA,
    transformers="5.17.0",
    triton="3.9.0",
    driver=DriverFacts(version="590.1", gpus=[H100, H100], visible=2, is_loaded=True),
    cuda_visible_devices=None,
    cache=CACHE,
    models={"smollm2-135m": True, "minilm-l6": False},
)
ON_CPU = msgspec.structs.replace(GOOD, torch=FOR_CPU, driver=DriverFacts(error="NVML: library not found"))


def unwell(here: Checkup) -> list[Check]:
    """Return what is not ok."""
    return [one for one in (*gpu.judge(here), *models.judge(here)) if one.verdict != "ok"]


def driver(**changes: object) -> Checkup:
    """Change what the driver says."""
    return msgspec.structs.replace(GOOD, driver=msgspec.structs.replace(GOOD.driver, **changes))


def test_a_machine_with_gpus_is_well() -> None:
    """They are counted and named, with memory and driver."""
    (gpus, *_) = gpu.judge(GOOD)

    assert unwell(GOOD) == []
    assert gpus.found == "2 x NVIDIA H100 (80.0 GiB); driver 590.1"


def test_a_machine_without_a_gpu_is_a_note() -> None:
    """It computes on its CPU; a build of torch for CPUs is right there, and Triton not needed."""
    (one,) = unwell(msgspec.structs.replace(ON_CPU, triton=None))

    assert (one.name, one.verdict) == ("GPUs", "note")
    assert "no GPU: models run on the CPU (NVML: library not found)" in one.found


@pytest.mark.parametrize(
    ("torch", "words", "remedy"),
    [
        (FOR_CPU, "built for the CPU, but there is a GPU", "install a build with CUDA"),
        (msgspec.structs.replace(WITH_CUDA, has_cuda=False, devices=0), "cannot use the GPU", "driver (it is 590.1)"),
        (msgspec.structs.replace(WITH_CUDA, devices=1), "sees 1 of 2 GPUs", "nvidia-smi"),
        (msgspec.structs.replace(WITH_CUDA, version="2.8.1"), "too old", "torch>=2.9"),
        (TorchFacts(version="2.13.0", error="OSError: libx.so"), "cannot be imported: OSError", "--force-reinstall"),
    ],
)
def test_a_torch_that_cannot_use_the_gpus_is_bad(torch: TorchFacts, words: str, remedy: str) -> None:
    """The model would run on the CPU, without a word."""
    (one,) = unwell(msgspec.structs.replace(GOOD, torch=torch))

    assert (one.name, one.verdict) == ("torch", "bad")
    assert words in one.found
    assert remedy in one.remedy


def test_gpus_that_are_hidden_are_a_note() -> None:
    """Somebody may have meant it; torch then sees none, rightly."""
    hidden = msgspec.structs.replace(driver(visible=0), cuda_visible_devices="", torch=FOR_CPU)

    (one,) = unwell(hidden)

    assert one.verdict == "note"
    assert "hidden by CUDA_VISIBLE_DEVICES=''" in one.found


def test_a_driver_that_lists_nothing_is_bad() -> None:
    """As after its update, until the machine is restarted."""
    broken = DriverFacts(is_loaded=True, error="NVML: Driver/library version mismatch")

    (one,) = unwell(msgspec.structs.replace(ON_CPU, driver=broken))

    assert (one.name, one.verdict) == ("GPUs", "bad")
    assert "mismatch" in one.found
    assert "restart" in one.remedy


@pytest.mark.parametrize(("torch", "verdict"), [(WITH_CUDA, "bad"), (FOR_CPU, "note")])
def test_without_its_bindings_no_worker_finds_a_gpu(torch: TorchFacts, verdict: str) -> None:
    """That matters where there is one."""
    here = msgspec.structs.replace(GOOD, torch=torch, driver=DriverFacts(has_bindings=False))

    assert [(one.name, one.verdict) for one in unwell(here)] == [("GPUs", verdict)]


def test_triton_is_missed_on_a_gpu() -> None:
    """There are slower ways."""
    assert [(one.name, one.verdict) for one in unwell(msgspec.structs.replace(GOOD, triton=None))] == [
        ("Triton", "note")
    ]


def test_a_client_machine_needs_none_of_it() -> None:
    """One note says so, not one for each package."""
    bare = msgspec.structs.replace(ON_CPU, torch=None, transformers=None, triton=None)
    names = {one.name: one.verdict for one in unwell(bare)}

    assert names == {"GPUs": "note", "torch": "note"}


@pytest.mark.parametrize("version", [None, "5.16.2", "5.18.0", "6.0"])
def test_transformers_is_bound_to_a_minor_version(version: str | None) -> None:
    """Others may fail in the middle of an answer."""
    (one,) = unwell(msgspec.structs.replace(GOOD, transformers=version))

    assert (one.name, one.verdict) == ("transformers", "bad")
    assert "pip install 'transformers>=5.17,<5.18'" in one.remedy


@pytest.mark.parametrize(
    ("cache", "verdict", "words"),
    [
        (msgspec.structs.replace(CACHE, is_writable=False), "bad", "cannot be written"),
        (msgspec.structs.replace(CACHE, is_writable=False, is_there=False), "bad", "cannot be made"),
        (msgspec.structs.replace(CACHE, free_bytes=1 << 30), "note", "1.0 GiB free"),
    ],
)
def test_a_cache_without_room_is_told(cache: CacheFacts, verdict: str, words: str) -> None:
    """And how to use another folder."""
    (one,) = unwell(msgspec.structs.replace(GOOD, cache=cache))

    assert (one.name, one.verdict) == ("model cache", verdict)
    assert words in one.found
    assert "ZMQRT_CACHE" in one.remedy


def test_a_cache_that_is_not_there_yet_is_well() -> None:
    """It is made when it is needed."""
    assert unwell(msgspec.structs.replace(GOOD, cache=msgspec.structs.replace(CACHE, is_there=False))) == []


def test_without_any_known_model_it_says_how_to_get_one() -> None:
    """A note: people have models of their own."""
    (one,) = unwell(msgspec.structs.replace(GOOD, models={"smollm2-135m": False}))

    assert one.verdict == "note"
    assert "zmqrt models fetch smollm2-135m" in one.remedy


def test_what_one_process_writes_the_other_reads() -> None:
    """One line."""
    line = encode(GOOD).decode()

    assert "\n" not in line
    assert decode(line) == GOOD
