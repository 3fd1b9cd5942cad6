"""Weights that are not those of their configuration are refused on every way of loading them, and the tensors named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import broken_models as broken
from support.engines import alone, as_transformers, ask, describe, generated
from support.tiny import silent, tiny_model
from zmqrt.worker.engines.base import CannotLoadError, EngineSpec
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.generate.hf_loader import load, untyped

pytestmark = pytest.mark.integration
UP = "model.layers.1.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"


def spec(folder: Path, *, max_model_len: int = 0, **options: str) -> EngineSpec:
    """Describe an engine on CPU."""
    return describe(folder, max_model_len=max_model_len, slots=2, options=options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is right: two layers."""
    return tiny_model(tmp_path_factory.mktemp("models"), "layers=2,hidden=64")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return broken.copy(whole, tmp_path / "broken")


def refused(folder: Path, words: str) -> None:
    """Expect that a model is refused for good."""
    with pytest.raises(CannotLoadError, match=words):
        load(spec(folder), silent)


@pytest.mark.parametrize("path", ["auto", "fused", "modules"])
def test_a_missing_tensor_is_refused_on_every_path(model: Path, path: str) -> None:
    """Transformers fills it with random numbers; nobody would see that."""
    broken.drop(model, UP)

    with pytest.raises(CannotLoadError, match=rf"lacks 1 tensor .*: {UP}; random numbers"):
        factory(spec(model, path=path), silent)


def test_too_few_layers_and_too_many_are_refused(model: Path) -> None:
    """A configuration of a larger model lacks tensors, one of a smaller model leaves some over."""
    broken.edit_json(model / "config.json", num_hidden_layers=3)
    refused(model, r"lacks 9 tensors .*model\.layers\.2\..* and 4 more")

    broken.edit_json(model / "config.json", num_hidden_layers=1)
    refused(model, r"has 9 tensors that its config\.json knows nothing of: model\.layers\.1\.")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.q_proj.bias", (64,)),
        ("base_model.model.layers.0.lora_A.weight", (4, 64)),
        ("score.weight", (2, 64)),
    ],
)
def test_what_the_configuration_does_not_know_is_refused(model: Path, name: str, shape: tuple[int, ...]) -> None:
    """A bias that is not added, an adapter that is not applied: the answers would be another model's."""
    broken.add(model, name, shape)

    refused(model, name)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "rope_freqs.weight", "vision_tower.layers.0.weight"]
)
def test_what_no_text_needs_may_be_left_over(model: Path, name: str) -> None:
    """Old checkpoints keep tables, and some have eyes."""
    broken.add(model, name, (16,))

    assert load(spec(model), silent).context == 2048


def test_shapes_are_compared(model: Path) -> None:
    """Each tensor with what was found and what was expected."""
    broken.add(model, UP, (100, 64))

    refused(model, rf"{UP} is \[100, 64\], and \[176, 64\] by config\.json")


def test_a_head_is_missed_unless_it_is_the_embedding(model: Path) -> None:
    """With tied weights it is no tensor of its own."""
    broken.edit_json(model / "config.json", tie_word_embeddings=False)
    refused(model, r"lm_head\.weight")

    broken.change(model, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBED]}))
    assert load(spec(model), silent).context == 2048


@pytest.mark.parametrize("number", [broken.NAN_BF16, broken.INFINITY_BF16])
@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("name", [UP, EMBED, "model.norm.weight"])
def test_numbers_that_are_not_finite_are_damage(model: Path, name: str, number: bytes, *, every: bool) -> None:
    """One is enough: it spreads over every answer that touches it."""
    broken.fill(model, name, number, every=every)

    refused(model, rf"is damaged: it has 1 tensor with numbers that are not finite \({name}\); fetch it again$")


@pytest.mark.parametrize("name", [EMBED, "model.norm.weight"])
def test_a_model_that_finds_every_token_as_likely_is_refused(model: Path, name: str) -> None:
    """As a file that was made room for and never filled."""
    broken.fill(model, name, b"\0\0")

    with pytest.raises(CannotLoadError, match="every token equally likely"):
        factory(spec(model), silent)


def test_all_zeros_elsewhere_are_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some models are made so: it is a warning."""
    broken.fill(model, UP, b"\0\0")

    load(spec(model), silent)

    assert f"all zeros, as in a file that was never filled: {UP}" in caplog.text


def test_code_of_a_model_is_not_run(model: Path) -> None:
    """Nor asked about at the terminal, which would take fifteen seconds."""
    (model / "modeling_own.py").write_text("raise SystemExit('it ran')")
    auto = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    broken.edit_json(model / "config.json", model_type="own", auto_map=auto)

    refused(model, "brings code of its own .auto_map")


def test_a_type_that_transformers_does_not_know_is_named(model: Path) -> None:
    """With the version that was asked."""
    broken.edit_json(model / "config.json", model_type="llama9")

    refused(model, r"transformers [\d.]+ cannot load .*llama9")


def test_an_encoder_loaded_as_a_generator_is_refused(tmp_path: Path) -> None:
    """Even if nobody looked at its configuration before: it lacks a head."""
    transformers = untyped("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path)

    refused(tmp_path, "BertModel|lacks")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 16,
    "long_factor": [4.0] * 16,
}


@pytest.mark.parametrize(
    ("scaling", "positions", "context", "lengths"),
    [
        (YARN, 64, 256, (20, 150)),
        ({"rope_type": "linear", "factor": 4.0}, 64, 256, (20, 150)),
        (LLAMA3, 256, 256, (20, 150)),
        ({"rope_type": "dynamic", "factor": 4.0}, 64, 256, (20,)),
        (LONG, 256, 256, (20,)),
    ],
    ids=["yarn", "linear", "llama3", "dynamic", "longrope"],
)
def test_a_stretched_rotary_embedding_is_computed_as_transformers_does(
    whole: Path, tmp_path: Path, *, scaling: dict[str, Any], positions: int, context: int, lengths: tuple[int, ...]
) -> None:
    """Over its whole context, by whichever path the model is run."""
    folder = broken.copy(whole, tmp_path / "stretched")
    parameters = {"rope_theta": 10000.0, **scaling}
    broken.edit_json(folder / "config.json", rope_parameters=parameters, max_position_embeddings=positions)
    oracle = as_transformers(folder)

    engine = factory(spec(folder), silent)

    assert engine.capacity().context == context
    for length in lengths:
        request = ask(length, length)
        assert alone(engine, request).token_ids == generated(oracle, request)
    engine.close()
    with pytest.raises(CannotLoadError, match=rf"--max-model-len 257 .* its context is {context} tokens"):
        factory(spec(folder, max_model_len=257), silent)


def test_the_same_numbers_in_any_batch_end_where_a_text_changes_its_neighbours(whole: Path, tmp_path: Path) -> None:
    """Beyond its original length a text of such a model changes how all beside it are computed."""
    folder = broken.copy(whole, tmp_path / "growing")
    scaling = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 4.0}
    broken.edit_json(folder / "config.json", rope_parameters=scaling, max_position_embeddings=64)

    engine = factory(spec(folder, deterministic="1"), silent)

    assert engine.capacity().context == 64
    engine.close()
    with pytest.raises(CannotLoadError, match="--max-model-len 64 is the most"):
        factory(spec(folder, deterministic="1", max_model_len=65), silent)


def test_an_engine_ends_where_any_file_says_so(model: Path) -> None:
    """The same ids as the agent's, or a token that ends an answer for one would be text for the other."""
    broken.edit_json(model / "generation_config.json", eos_token_id=0)
    broken.edit_json(model / "config.json", eos_token_id=[5])

    assert load(spec(model), silent).eos_ids == {0, 5, 258}
