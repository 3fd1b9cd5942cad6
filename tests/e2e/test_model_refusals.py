"""A node whose model is not what it says ends at once with 1 and one sentence, and never serves."""

import json
import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

from support import broken_models as broken
from support.gguf_files import split_gguf
from support.nvml import with_driver
from support.stack import Process, Stack, eventually, start
from support.tiny import tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A broker."""
    with Stack() as fleet:
        fleet.broker()
        yield fleet


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right."""
    return tiny_model(tmp_path_factory.mktemp("models"), "layers=1,hidden=32")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return broken.copy(whole, tmp_path / "broken")


def node(stack: Stack, folder: Path, model: Path | str, *more: str) -> Process:
    """Start a node with a model, and a cache of its own."""
    arguments = ("--broker", stack.workers, "--device", "cpu", "--model", str(model), *more)
    process = start("worker", *arguments, env={"ZMQRT_CACHE": str(folder / "cache")}, wait=False)
    stack.processes.append(process)
    return process


def last_words(process: Process) -> str:
    """Wait for the end; return what was said about it. One process was tried, and no traceback was printed."""
    assert process.wait(200.0) == 1
    eventually(lambda: "leaving: " in process.output(), what="the last words")
    said = [str(json.loads(line).get("message")) for line in process.lines if line.startswith("{")]
    assert len([one for one in said if "the engine process ended" in one]) == 1
    assert "Traceback" not in process.output()
    assert '"ready"' not in process.output()
    (last,) = [one for one in said if one.startswith("leaving")]
    return last


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (
        lambda model: broken.truncate(model / broken.WEIGHTS),
        r"model\.safetensors has .* cut off; fetch it again",
    ),
    "lfs": (lambda model: (model / broken.WEIGHTS).write_bytes(broken.LFS_POINTER), "git lfs pull"),
    "shard": (lambda model: broken.shard(model)[1].unlink(), r"lacks 1 of the 2 files.*model-00002-of-00002"),
    "missing": (lambda model: broken.drop(model, UP), f"lacks 1 tensor .*{UP}"),
    "encoder": (lambda model: broken.edit_json(model / "config.json", architectures=["BertModel"]), "BertModel"),
    "tokenizer": (lambda model: broken.edit_json(model / "config.json", vocab_size=100), "only 100 .*not of one model"),
    "template": (
        lambda model: (model / "chat_template.jinja").write_text("{% if"),
        r"chat_template\.jinja cannot be used",
    ),
}


QUICK = ("cut", "shard", "template")
"""One of each kind of file; tests/unit/worker/test_model_directory.py has them all, at the function that looks."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in sorted(BREAKS)]
)
def test_a_directory_that_is_not_what_it_says_is_1(stack: Stack, model: Path, tmp_path: Path, kind: str) -> None:
    """File, reason, remedy."""
    how, words = BREAKS[kind]
    how(model)

    assert re.search(words, last_words(node(stack, tmp_path, model)))


def test_half_of_a_split_model_is_1(stack: Stack, tmp_path: Path) -> None:
    """And a directory with a file in it names the file."""
    parts = split_gguf(tmp_path, parts=2)
    parts[1].unlink()

    assert "model-00002-of-00002.gguf is not beside it" in last_words(node(stack, tmp_path, parts[0]))
    assert f"did you mean {parts[0]}?" in last_words(node(stack, tmp_path, tmp_path))


def test_a_name_that_is_nearly_right_is_1(stack: Stack, whole: Path, tmp_path: Path) -> None:
    """The right one stands beside it."""
    assert "did you mean smollm2-135m?" in last_words(node(stack, tmp_path, "smollm-135m"))
    assert f"did you mean {whole}?" in last_words(node(stack, tmp_path, str(whole)[:-1]))


def test_a_context_larger_than_the_models_is_1(stack: Stack, whole: Path, tmp_path: Path) -> None:
    """With both numbers."""
    words = last_words(node(stack, tmp_path, whole, "--max-model-len", "4096"))

    assert re.search(r"--max-model-len 4096 .* its context is 2048 tokens", words)


@pytest.mark.slow
def test_damage_that_the_engine_finds_is_1_after_one_try(stack: Stack, model: Path, tmp_path: Path) -> None:
    """One number that is none: no second process looks for it again."""
    broken.fill(model, UP, broken.NAN_BF16, every=False)

    assert re.search(f"is damaged: .*not finite .{UP}", last_words(node(stack, tmp_path, model)))


@pytest.mark.slow
def test_a_model_larger_than_the_machine_is_1_before_it_is_loaded(stack: Stack, model: Path, tmp_path: Path) -> None:
    """Two tebibytes as float32, of which the disk holds nothing: one try, and both numbers."""
    broken.enlarge(model, rows=1 << 19)

    assert re.search(
        r"too little memory to load broken: it needs 2048\.0 GiB \(weights as float32 2048\.0 GiB.* are free on cpu.*"
        r"smollm2-135m does.*--engine-opt memory_check=0",
        last_words(node(stack, tmp_path, model)),
    )


@pytest.mark.slow
@pytest.mark.skipif("+cpu" not in metadata.version("torch"), reason="needs a torch for the CPU")
def test_a_torch_for_the_cpu_beside_a_gpu_is_1(stack: Stack, whole: Path, tmp_path: Path) -> None:
    """It takes the card, says what is wrong with torch, and the command that repairs it."""
    arguments = ("--broker", stack.workers, "--model", str(whole))
    env = {"ZMQRT_CACHE": str(tmp_path / "cache"), **with_driver(tmp_path)}
    process = start("worker", *arguments, env=env, wait=False)
    stack.processes.append(process)

    assert re.search(
        r"cuda:0: torch .* built for the CPU, but there is a GPU \(NVIDIA H100\); run: pip install .*/whl/cu126",
        last_words(process),
    )


@pytest.mark.slow
def test_a_stretched_model_serves_its_whole_context(stack: Stack, model: Path, tmp_path: Path) -> None:
    """And its prompts begin with the token that only a second file names."""
    broken.edit_json(model / "config.json", rope_scaling={"type": "yarn", "factor": 4.0}, max_position_embeddings=512)
    (model / "special_tokens_map.json").write_text('{"bos_token": "<|endoftext|>"}')
    (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    node(stack, tmp_path, model, "--served-model-name", "stretched")
    stack.wait_for_nodes(1)

    with stack.client() as client:
        answer = client.infer("x" * 1500, model="stretched", max_tokens=2, temperature=0)

        assert answer.usage.prompt_tokens == 1501
        assert [one.context for one in client.models() if one.service == "stretched"] == [2048]
