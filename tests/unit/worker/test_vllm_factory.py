"""Options and configuration of vLLM as the node has them. vLLM itself is not needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.engines import describe
from support.tiny import silent
from zmqrt.worker.engines import vllm_factory
from zmqrt.worker.engines.base import CannotLoadError
from zmqrt.worker.engines.vllm_factory import capacity_of, environment, revision_of, takes_seeds, words_of

KINDS = {
    "tensor_parallel_size": "int",
    "enforce_eager": "bool",
    "enable_prefix_caching": "bool | None",
    "compilation_config": "CompilationConfig",
    "model": "str",
}


def test_options_are_arguments_of_the_command_line() -> None:
    """With dashes or without; a switch is on, off, or what else its argument takes."""
    options = {"tensor-parallel-size": "2", "enforce_eager": "1", "enable_prefix_caching": "False"}

    assert words_of(options, KINDS) == ["--tensor-parallel-size=2", "--enforce-eager", "--no-enable-prefix-caching"]
    assert words_of({"compilation_config.mode": "3"}, KINDS) == ["--compilation-config.mode=3"]


@pytest.mark.parametrize(("name", "words"), [("tensor_size", "no such argument"), ("model", "the node decides that")])
def test_an_option_that_cannot_be_is_refused_by_name(name: str, words: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(CannotLoadError, match=f"--engine-opt {name}: .*{words}"):
        words_of({name: "2"}, KINDS)


def test_only_a_cpu_is_told_how_to_share_the_machine(tmp_path: Path) -> None:
    """And nothing reports to anybody anywhere."""
    on_cpu, on_gpu = (environment(describe(tmp_path, device=device)) for device in ("cpu", "cuda:0"))

    assert on_cpu["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert not any("CPU" in name for name in on_gpu)
    assert on_gpu.items() <= on_cpu.items()
    assert on_gpu["VLLM_NO_USAGE_STATS"] == "1"


def configuration(**parallel: int) -> Any:
    """Make what vLLM knows of itself once it has loaded."""
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=256),
        parallel_config=SimpleNamespace(**parallel),
        cache_config=SimpleNamespace(num_gpu_blocks=100, block_size=16),
        model_config=SimpleNamespace(max_model_len=4096, dtype="torch.bfloat16"),
    )


def test_capacity_is_that_of_its_scheduler() -> None:
    """Of every replica."""
    capacity = capacity_of(configuration())

    assert (capacity.slots, capacity.context, capacity.kv_tokens) == (256, 4096, 1600)
    assert capacity_of(configuration(data_parallel_size=2)).slots == 512


def test_a_revision_names_weights_type_and_how_they_are_quantised(tmp_path: Path) -> None:
    """So that a started stream goes on only where its numbers are the same."""
    plain = describe(tmp_path, revision="abc")

    assert revision_of(plain, configuration()) == "abc-bfloat16-vllm"
    quantised = describe(tmp_path, revision="abc", options={"quantization": "fp8"})
    assert revision_of(quantised, configuration()) == "abc-bfloat16-fp8-vllm"


def test_on_a_cpu_prompts_in_pieces_have_no_seeds(tmp_path: Path) -> None:
    """VLLM's older runner asks a generator of the CPU for what it has not, and ends."""
    here, there = describe(tmp_path), describe(tmp_path, device="cuda:0")
    pieces, whole = (
        SimpleNamespace(scheduler_config=SimpleNamespace(enable_chunked_prefill=on)) for on in (True, False)
    )

    assert [takes_seeds(here, pieces), takes_seeds(here, whole), takes_seeds(there, pieces)] == [False, True, True]


def test_a_missing_vllm_is_told_with_the_extra_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every optional dependency."""

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    for name in environment(describe(tmp_path)):
        monkeypatch.setenv(name, "")
    with pytest.raises(CannotLoadError, match=r"pip install 'zmqrt\[vllm\]'"):
        vllm_factory.factory(describe(tmp_path), silent)
