"""What transformers' own save_pretrained writes is served, and as transformers computes it, family by family."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from support.engines import alone, as_transformers, ask, describe, generated
from support.tiny import silent, tiny_model
from zmqrt.worker.engines.base import CannotLoadError
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.generate.hf_loader import untyped
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.model_sources import check_fit, resolve

pytestmark = pytest.mark.integration
VOCABULARY = 512
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
LLAMA = {**PLAIN, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": None},
    "qwen2": {**LLAMA, "tie_word_embeddings": True},
    "qwen3": {**LLAMA, "head_dim": 16, "tie_word_embeddings": True},
    "gemma": {**LLAMA, "head_dim": 16},
    "phi3": {**LLAMA, "pad_token_id": 0, "sliding_window": None},
    "mixtral": {**LLAMA, "num_local_experts": 2},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": PLAIN,
    "opt": {**PLAIN, "ffn_dim": 128, "word_embed_proj_dim": 64},
}


def save(kind: str, folder: Path, **more: object) -> Path:
    """Write a model of random numbers with a tokenizer beside it, in two shards."""
    transformers = untyped("transformers")
    config = transformers.AutoConfig.for_model(kind, **{**FAMILIES.get(kind, LLAMA), **more})
    transformers.set_seed(1)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / kind, max_shard_size="250KB")
    for file in tiny_model(folder).glob("tokenizer*.json"):
        shutil.copy(file, folder / kind)
    return folder / kind


def load(folder: Path) -> Any:
    """Do what a worker does with a directory."""
    found = resolve(str(folder), progress=silent)
    check_fit(found, max_model_len=0)
    return factory(describe(folder, max_model_len=0, slots=2), silent)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_is_served_as_transformers_computes_it(kind: str, tmp_path: Path) -> None:
    """With folders and files beside the weights that are of no use to us."""
    folder = save(kind, tmp_path)
    (folder / "onnx").mkdir()
    for name in ("onnx/model.onnx", "pytorch_model.bin", "training_args.bin", "consolidated.safetensors"):
        (folder / name).write_bytes(b"not looked at")
    request = ask(1, 40)
    wanted = generated(as_transformers(folder), request)

    engine = load(folder)

    assert alone(engine, request).token_ids == wanted
    engine.close()


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("diffllama", {}, "cannot be run here: the self-test is off"),
        ("gemma2", {"head_dim": 16}, "its layers are not all plain attention|its attention cannot be replaced"),
        ("gptj", FAMILIES["gpt2"] | {"rotary_dim": 8}, "its attention cannot be replaced .GPTJForCausalLM.$|self-test"),
    ],
)
def test_what_cannot_be_run_is_refused_for_good(kind: str, more: dict[str, object], words: str, tmp_path: Path) -> None:
    """None is served that computes something else than transformers does, and none is tried again."""
    with pytest.raises(CannotLoadError, match=words):
        load(save(kind, tmp_path, **more))


def test_a_model_without_positions_is_refused_for_what_it_is(tmp_path: Path) -> None:
    """A T5 has none, and is a model of two parts whatever it has."""
    folder = tmp_path / "t5"
    shutil.copytree(tiny_model(tmp_path), folder)
    (folder / "config.json").write_text(
        '{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": true}'
    )

    with pytest.raises(ModelError, match=r"it is a model of an encoder and a decoder .T5ForConditionalGeneration."):
        resolve(str(folder), progress=silent)
