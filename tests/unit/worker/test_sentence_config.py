"""What is made of the vectors of tokens is read from the model's files, and what is not computed here is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zmqrt.worker.model_files import ModelError
from zmqrt.worker.sentence_config import SentenceConfig, read_sentence_config


def write(folder: Path, *kinds: str, **modes: object) -> None:
    """Write modules.json with these steps, and the configuration of the pooling."""
    steps = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, kind in enumerate(kinds, 1):
        path = f"{index}_{kind}"
        steps.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir()
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8} | modes))


def test_what_says_nothing_is_the_mean_of_length_one(tmp_path: Path) -> None:
    """As other servers do."""
    assert read_sentence_config(tmp_path) == SentenceConfig(pooling=("mean",), is_normalised=True)


def test_the_files_say_how_and_how_long(tmp_path: Path) -> None:
    """The way, the length of vectors and of texts, a text before each."""
    write(tmp_path, "Pooling", pooling_mode_cls_token=True, pooling_mode_mean_tokens=False)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": true}')
    about = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(about))

    found = read_sentence_config(tmp_path)

    assert found == SentenceConfig(
        pooling=("cls",), is_normalised=False, prompt="query: ", is_lowered=True, max_tokens=256
    )


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_lasttoken": True}, ("last",)),
        ({"pooling_mode": "lasttoken"}, ("last",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
    ],
)
def test_several_ways_stand_in_their_order(tmp_path: Path, modes: dict[str, object], pooling: tuple[str, ...]) -> None:
    """That of sentence-transformers."""
    write(tmp_path, "Pooling", "Normalize", **modes)

    found = read_sentence_config(tmp_path)

    assert (found.pooling, found.is_normalised) == (pooling, True)


@pytest.mark.parametrize(
    ("kinds", "modes", "words"),
    [
        (("Pooling", "Dense"), {}, "come Pooling, Dense; only Pooling and Normalize"),
        (
            ("Pooling",),
            {"pooling_mode_weightedmean_tokens": True},
            "pooling by pooling_mode_weightedmean_tokens;",
        ),
        (("Pooling",), {}, "pooling by nothing"),
        (("Pooling",), {"pooling_mode": "median"}, "pooling by median"),
    ],
)
def test_what_is_not_computed_is_named(
    tmp_path: Path, kinds: tuple[str, ...], modes: dict[str, object], words: str
) -> None:
    """Without it the vectors would be another model's."""
    write(tmp_path, *kinds, **modes)

    with pytest.raises(ModelError, match=words):
        read_sentence_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("modules.json", "{}", "no list of steps"),
        ("modules.json", "[]", "first step is missing"),
        ("modules.json", '[{"type": "x.CLIPModel"}]', "first step is CLIPModel"),
        ("modules.json", '[{"type": "x.Transformer", "path": "0_Transformer"}]', "lies in 0_Transformer"),
        ("modules.json", '[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "p"}]', "lacks p/config.json"),
        *(
            (
                "modules.json",
                f'[{{"type": "x.Transformer"}}, {{"type": "x.Pooling", "path": "{path}"}}]',
                "no list of steps",
            )
            for path in ("..", "../../etc", "/etc", "p/../..", "p" * 5000, "p\\u0000")
        ),
        ("modules.json", '[{"type": "\udcff"}]', "no list of steps"),
        ("modules.json", '[{"type": "x.Transformer", "z": ' + "[" * 100_000, "no list of steps"),
        ("sentence_bert_config.json", '{"max_seq_length": "long"}', "max_seq_length is not"),
        ("sentence_bert_config.json", '{"max_seq_length": -5}', "max_seq_length is -5"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "query"}', "prompts has no such text"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    """With what is wrong."""
    (tmp_path / name).write_text(content, errors="surrogateescape")

    with pytest.raises(ModelError, match=words):
        read_sentence_config(tmp_path)


def test_an_operator_may_choose_otherwise(tmp_path: Path) -> None:
    """One of those there are."""
    found = read_sentence_config(tmp_path).with_options({"pooling": "last", "normalize": "0"})

    assert (found.pooling, found.is_normalised) == (("last",), False)
    with pytest.raises(ModelError, match="there are cls, mean, last, max"):
        found.with_options({"pooling": "first"})
