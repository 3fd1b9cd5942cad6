"""What a model does is read from its files, and the encoder engine takes only what it can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import broken_models as broken
from support.tiny import silent, tiny_model
from zmqrt.worker.encoder_fit import check_encoder
from zmqrt.worker.model_directory import read_model_directory
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.model_fit import check_generator
from zmqrt.worker.model_sources import check_fit, resolve

BERT = {"model_type": "bert", "architectures": ["BertModel"]}
RANKER = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers."""
    return tiny_model(tmp_path_factory.mktemp("models"), "layers=2,hidden=64")


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, whose configuration may say anything."""
    return broken.copy(whole, tmp_path / "model")


def look(model: Path, engine: str = "auto", *, max_model_len: int = 0) -> str:
    """Look at a model as a node does; return what it is for."""
    files = resolve(str(model), progress=silent)
    check_fit(files, max_model_len=max_model_len, engine=engine)
    return files.kind


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "generate"),
        (BERT, "embed"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "embed"),
        ({"model_type": "xlm-roberta", "architectures": None}, "embed"),
        (RANKER, "classify"),
        (RANKER | {"id2label": {"0": "LABEL_0"}}, "rerank"),
        (RANKER | {"num_labels": 1}, "rerank"),
        (RANKER | {"id2label": {"0": "a", "1": "b", "2": "c"}}, "classify"),
    ],
)
def test_what_a_model_is_for_chooses_its_engine(model: Path, changes: dict[str, Any], kind: str) -> None:
    """Writing, vectors, one number, several."""
    broken.edit_json(model / "config.json", **changes)

    assert look(model) == kind


def test_a_sentence_model_on_top_of_a_decoder_is_an_encoder(model: Path) -> None:
    """As those of Qwen."""
    (model / "modules.json").write_text('[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}]')
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')

    assert look(model) == "embed"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaModel"]}, r"without a head for text \(LlamaModel\)"),
        ({"architectures": ["BertForTokenClassification"], "model_type": "bert"}, "a classifier of tokens"),
        ({"architectures": ["BertForQuestionAnswering"], "model_type": "bert"}, "a finder of answers"),
        ({"architectures": ["T5EncoderModel"], "model_type": "t5"}, "an encoder and a decoder"),
        ({"architectures": ["ViTModel"], "model_type": "vit"}, r"reads other than plain text \(ViTModel\)"),
        (BERT | {"num_hidden_layers": 1}, r"more layers than the 1 of its config\.json: model\.layers\.1\."),
        (BERT | {"num_hidden_layers": 5}, r"lacks layers .*\(5 of them\): 2, 3, 4;"),
    ],
)
def test_what_nothing_of_ours_can_run_is_refused_by_name(model: Path, changes: dict[str, Any], words: str) -> None:
    """Before anything is loaded."""
    broken.edit_json(model / "config.json", **changes)

    with pytest.raises(ModelError, match=words):
        look(model)


def test_a_sentence_model_whose_steps_are_not_known_is_refused(model: Path) -> None:
    """By the step."""
    broken.edit_json(model / "config.json", **BERT)
    (model / "modules.json").write_text('[{"type": "x.Transformer"}, {"type": "x.WordWeights"}]')

    with pytest.raises(ModelError, match="come WordWeights; only Pooling and Normalize"):
        look(model)


def test_each_engine_refuses_what_is_for_the_other(model: Path) -> None:
    """Whoever names one outright is told which it is for."""
    with pytest.raises(ModelError, match=r"writes text, and is no encoder: leave --engine out"):
        look(model, "encoder")
    broken.edit_json(model / "config.json", **BERT)
    with pytest.raises(ModelError, match=r"cannot generate text: it is an encoder"):
        look(model, "generate")


def test_positions_behind_the_padding_are_fewer(model: Path) -> None:
    """RoBERTa has two fewer than its configuration says, and a text of the last two would read beyond the table."""
    broken.edit_json(model / "config.json", model_type="roberta", architectures=["RobertaModel"], pad_token_id=1)
    positions = 2048

    assert resolve(str(model), progress=silent).context == positions - 2
    with pytest.raises(ModelError, match=r"--max-model-len 2047 is more .* 2046 tokens"):
        look(model, max_model_len=2047)


@pytest.mark.parametrize("check", [check_generator, check_encoder])
@pytest.mark.parametrize("positions", ["x", -1, True, [64]])
def test_positions_that_are_no_number_are_named(model: Path, check: Callable[..., None], positions: object) -> None:
    """Also by an engine, whose directory may have changed since its node looked."""
    changes = BERT if check is check_encoder else {}
    broken.edit_json(model / "config.json", max_position_embeddings=positions, **changes)

    with pytest.raises(ModelError, match="no number of positions"):
        check(model, read_model_directory(model))
