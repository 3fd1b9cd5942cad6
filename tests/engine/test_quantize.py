"""Weights in few bits: less memory, the same model on both paths, and a refusal by name for what cannot be."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from support import broken_models as broken
from support.engines import alone, ask, describe, requests_of_all_kinds, tokens_of
from support.tiny import silent, tiny_model
from zmqrt.worker.engines.base import CannotLoadError, TokenEngine
from zmqrt.worker.engines.generate.factory import factory
from zmqrt.worker.engines.generate.hf_loader import load, untyped
from zmqrt.worker.engines.generate.quantize import plain_tensors
from zmqrt.worker.model_directory import read_model_directory
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.model_fit import check_generator

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::UserWarning:torchao", "ignore::DeprecationWarning:torchao"),
]
T = TypeVar("T", bound=Callable[..., None])
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None


def needs_torchao(test: T) -> T:
    """Mark a test that needs it: to import it takes longer than all the rest of this file."""
    marked: T = pytest.mark.slow(pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed")(test))
    return marked


KINDS = ["int8", "int4", "fp8"]
UP = "model.layers.1.mlp.up_proj.weight"
Make = Callable[..., TokenEngine]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model."""
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def make(model: Path) -> Make:
    """Make engines of the tiny model, in few bits."""

    def made(quantize: str, path: str, **options: str) -> TokenEngine:
        engine = factory(describe(model, quantize=quantize, options={"path": path, **options}), silent)
        assert isinstance(engine, TokenEngine)
        return engine

    return made


def bytes_of_layers(model: Any) -> int:
    """Count what the matrices of the layers take, scales and all."""
    matrices = [(name, one) for name, one in model.model.layers.named_parameters() if one.dim() > 1]
    return sum(part.untyped_storage().nbytes() for _, part in plain_tensors(matrices))


@needs_torchao
@pytest.mark.parametrize(("kind", "most_bytes"), [("int8", 1.05), ("fp8", 1.05), ("int4", 0.8)])
def test_layers_take_as_many_bits_as_were_asked_for(model: Path, kind: str, most_bytes: float) -> None:
    """And scales beside them: one for each row, in four bits two for each group of 32."""
    plain, quantised = (load(describe(model, quantize=one), silent).model for one in ("none", kind))
    count = bytes_of_layers(plain) / 4

    assert bytes_of_layers(quantised) <= most_bytes * count


@needs_torchao
@pytest.mark.parametrize("kind", KINDS)
def test_both_paths_draw_the_same_alone_in_a_batch_and_resumed(make: Make, kind: str) -> None:
    """From the same few bits; a request goes on exactly where another engine was stopped.

    Four bits compute in bfloat16, where that is promised of one path, and with deterministic=1.
    """
    requests = requests_of_all_kinds(8, vocabulary=256, tokens=12)
    path, options = ("fused", {"deterministic": "1"}) if kind == "int4" else ("modules", {})
    ours, theirs = make(kind, "fused", **options), make(kind, path, **options)

    together = tokens_of(theirs, requests)

    assert tokens_of(ours, requests) == together
    for request in requests[:4]:
        whole = together[request.ticket]
        assert alone(ours, request).token_ids == whole
        for cut in (1, 5, 11):
            resumed = msgspec.structs.replace(request, resume_ids=whole[:cut])
            assert alone(theirs, resumed).token_ids == whole[cut:]


@needs_torchao
def test_eight_bits_are_nearly_the_model_itself(model: Path) -> None:
    """In four bits each weight is off by sixteen times as much, and so, nearly, is what comes of them."""
    import torch

    ids = torch.tensor([ask(length=60).prompt_ids])
    with torch.inference_mode():
        right, eight, four = (
            load(describe(model, quantize=kind), silent).model(input_ids=ids).logits.float().log_softmax(-1)
            for kind in ("none", "int8", "int4")
        )

    off_by_eight, off_by_four = (float((found - right).abs().mean()) for found in (eight, four))
    print(f"int8 is off by {off_by_eight:.4f}, int4 by {off_by_four:.4f}")
    assert 0 < off_by_eight < off_by_four / 4


@needs_torchao
def test_a_checkpoint_in_few_bits_is_served_as_it_is(model: Path, make: Make, tmp_path: Path) -> None:
    """By transformers' loader, on the fused path, and as the same weights quantised here; not quantised twice."""
    quantised = load(describe(model, quantize="int8"), silent).model
    for file in model.iterdir():
        if not file.name.startswith("model.safetensors"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    quantised.save_pretrained(tmp_path)
    check_generator(tmp_path, read_model_directory(tmp_path))
    requests = requests_of_all_kinds(4, vocabulary=256, tokens=12)

    engine = factory(describe(tmp_path), silent)

    assert tokens_of(engine, requests) == tokens_of(make("int8", "fused"), requests)
    with pytest.raises(CannotLoadError, match=r"is quantised already .*; leave --quantize out"):
        factory(describe(tmp_path, quantize="int8"), silent)


@needs_torchao
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seen_through_the_scales(model: Path, tmp_path: Path, kind: str) -> None:
    """Packed numbers have no NaN; what they were made from is named all the same."""
    damaged = broken.copy(model, tmp_path / "damaged")
    broken.fill(damaged, UP, broken.NAN_BF16, every=False)

    with pytest.raises(CannotLoadError, match=rf"not finite \({UP}\)"):
        load(describe(damaged, quantize=kind), silent)


@needs_torchao
def test_a_missing_tensor_is_named_as_ever(model: Path, tmp_path: Path) -> None:
    """Quantising while reading hides nothing of what the reader reports."""
    cut = broken.copy(model, tmp_path / "cut")
    broken.drop(cut, UP)

    with pytest.raises(CannotLoadError, match=rf"lacks 1 tensor .*: {UP}"):
        load(describe(cut, quantize="int8"), silent)


@needs_torchao
def test_weights_that_torchao_does_not_find_are_refused(tmp_path: Path) -> None:
    """GPT-2 has no linear layers but transposed ones of its own: nothing would be saved."""
    transformers = untyped("transformers")
    config = transformers.AutoConfig.for_model("gpt2", vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=256)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    with pytest.raises(CannotLoadError, match=r"does not reach most of .*--engine vllm"):
        load(describe(tmp_path, quantize="int8", max_model_len=0), silent)


@needs_torchao
def test_rows_that_cannot_be_cut_into_groups_are_refused(tmp_path: Path) -> None:
    """Eight bits do, having one scale for a row of any length."""
    odd = tiny_model(tmp_path, "layers=2,hidden=64")  # its inner width is 176

    with pytest.raises(CannotLoadError, match=r"multiple of 32 .* some of 176; use --quantize int8, or"):
        load(describe(odd, quantize="int4"), silent)
    assert load(describe(odd, quantize="int8"), silent).context == 512


def test_without_torchao_its_extra_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a byte of the weights is read."""
    monkeypatch.setitem(sys.modules, "torchao", None)

    with pytest.raises(CannotLoadError, match=r"needs the package torchao.*zmqrt\[quantize\]"):
        load(describe(model, quantize="int8"), silent)


def test_a_way_of_quantising_that_is_not_run_here_names_the_engine_that_may(model: Path, tmp_path: Path) -> None:
    """By its name, before anything is loaded."""
    other = broken.copy(model, tmp_path / "other")
    broken.edit_json(other / "config.json", quantization_config={"quant_method": "exl2", "bits": 4})

    with pytest.raises(ModelError, match=r"quantised \(exl2\), which is not run here; .* or --engine vllm"):
        check_generator(other, read_model_directory(other))
