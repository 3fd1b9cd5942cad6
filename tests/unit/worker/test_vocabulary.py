"""Reading a tokenizer's files, whichever way a model directory names things."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from zmqrt.protocol import toy_model
from zmqrt.protocol.errors import RequestError
from zmqrt.protocol.tasks import ChatMessage
from zmqrt.worker.vocabulary import ByteVocabulary, load_vocabulary

HELLO = [ChatMessage(role="user", content="hi")]


def write_model(folder: Path, *, tokenizer_config: dict[str, Any], **files: object) -> Path:
    """Write a byte-level tokenizer and the JSON files given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    tokenizer: Any = Tokenizer(models.BPE(vocab=vocab, merges=[]))  # its stubs leave out what lists hold
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>")]
    tokenizer.add_special_tokens(specials)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ messages[0].content }}",
        [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"},
        ],
    ],
)
def test_a_template_may_stand_in_the_configuration(tmp_path: Path, template: object) -> None:
    """One text, or several by name; special tokens stand as text or as objects."""
    config = {"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}

    vocabulary = load_vocabulary(write_model(tmp_path, tokenizer_config=config))

    assert vocabulary.encode_chat(HELLO) == [256, *vocabulary.encode("hi", is_raw=False)]
    assert vocabulary.eos_ids == {257}


def test_a_template_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    """It wins over the configuration."""
    write_model(tmp_path, tokenizer_config={"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new")

    assert load_vocabulary(tmp_path).encode_chat(HELLO) == load_vocabulary(tmp_path).encode("new", is_raw=False)


def test_a_model_without_a_template_takes_no_conversations(tmp_path: Path) -> None:
    """A prompt is plain text to it."""
    vocabulary = load_vocabulary(write_model(tmp_path, tokenizer_config={}))

    assert not vocabulary.has_template
    with pytest.raises(RequestError, match="no chat template; send a prompt"):
        vocabulary.encode_chat(HELLO)


@pytest.mark.parametrize(("eos", "expected"), [(7, {7}), ([7, 9], {7, 9}), (None, {257})])
def test_the_generation_configuration_names_the_end(tmp_path: Path, eos: object, expected: set[int]) -> None:
    """A converted tokenizer may be wrong about it; without an entry its word counts."""
    write_model(tmp_path, tokenizer_config={"eos_token": "</s>"}, generation_config={"eos_token_id": eos})

    assert load_vocabulary(tmp_path).eos_ids == expected


def test_nothing_is_truncated(tmp_path: Path) -> None:
    """Some files ask for it, silently: a prompt that is too long is an error that the client reads."""
    vocabulary = load_vocabulary(write_model(tmp_path, tokenizer_config={}))

    assert len(vocabulary.encode("0123456789", is_raw=True)) == 10


def test_ids_beyond_the_vocabulary_are_known_as_such(tmp_path: Path) -> None:
    """They would be an index error on a device."""
    vocabulary = load_vocabulary(write_model(tmp_path, tokenizer_config={}))

    assert [vocabulary.is_known(token_id) for token_id in (0, 257, 258, -1)] == [True, True, False, False]


def test_the_mock_counts_its_tokens_as_the_toy_model_does() -> None:
    """Both sides of the process boundary must mean the same by an id."""
    assert toy_model.EOS == ByteVocabulary.EOS
    assert toy_model.VOCABULARY == ByteVocabulary.SIZE
    assert ByteVocabulary().encode("é", is_raw=True) == [256, 0xC3, 0xA9]
