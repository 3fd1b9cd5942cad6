"""Reading a tokenizer's files, whichever way a model directory names things."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from zmqrt.protocol.errors import RequestError
from zmqrt.protocol.tasks import ChatMessage
from zmqrt.worker.engines import mock_tokens
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.tokenizer import ByteTokenizer, load_tokenizer

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

    vocabulary = load_tokenizer(write_model(tmp_path, tokenizer_config=config))

    assert vocabulary.encode_chat(HELLO) == [256, *vocabulary.encode("hi", is_raw=False)]
    assert vocabulary.eos_ids == {257}


def test_a_template_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    """It wins over the configuration."""
    write_model(tmp_path, tokenizer_config={"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new")

    assert load_tokenizer(tmp_path).encode_chat(HELLO) == load_tokenizer(tmp_path).encode("new", is_raw=False)


def test_a_model_without_a_template_takes_no_conversations(tmp_path: Path) -> None:
    """A prompt is plain text to it."""
    vocabulary = load_tokenizer(write_model(tmp_path, tokenizer_config={}))

    assert not vocabulary.has_template
    with pytest.raises(RequestError, match="no chat template; send a prompt"):
        vocabulary.encode_chat(HELLO)


@pytest.mark.parametrize(("eos", "expected"), [(7, {7, 257}), ([7, 9], {7, 9, 257}), (None, {257}), (True, {257})])
def test_every_file_may_name_an_end(tmp_path: Path, eos: object, expected: set[int]) -> None:
    """One that ends texts must not hide one that ends turns: a model would go on with its user's turn."""
    write_model(tmp_path, tokenizer_config={"eos_token": "</s>"}, generation_config={"eos_token_id": eos})

    assert load_tokenizer(tmp_path).eos_ids == expected


def test_the_ends_of_the_model_and_of_its_text_part_count(tmp_path: Path) -> None:
    """A model that also sees has a configuration within its configuration."""
    config = {"eos_token_id": [3, 4], "text_config": {"eos_token_id": 5}}
    write_model(tmp_path, tokenizer_config={}, config=config, generation_config={"eos_token_id": 6})

    assert load_tokenizer(tmp_path).eos_ids == {3, 4, 5, 6}


@pytest.mark.parametrize("is_special", [True, False])
def test_what_the_template_writes_behind_an_answer_is_an_end(tmp_path: Path, *, is_special: bool) -> None:
    """Some models name it nowhere else."""
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    added = {
        str(256 + at): {"content": text, "special": is_special}
        for at, text in enumerate(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    }
    config = {"eos_token": "</s>", "added_tokens_decoder": added, "chat_template": template}

    assert load_tokenizer(write_model(tmp_path, tokenizer_config=config)).eos_ids == {257, 259}


def test_a_template_that_begins_the_next_turn_alone_has_no_end(tmp_path: Path) -> None:
    """Nor has one whose last answer stands by itself: no token of the prompt is taken for an end."""
    template = "<s>{% for m in messages %}{{ m.content }}{% endfor %}"

    assert load_tokenizer(write_model(tmp_path, tokenizer_config={"chat_template": template})).eos_ids == frozenset()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages", r"line 1: "),
        ("{% for m in messages %}", r"line 1: .*endfor"),
        ("{{ raise_exception('not for you') }}", "not even a single message: not for you"),
        ("{{ messages[0].content | nonsense }}", "nonsense"),
        ("{{ nobody.knows.this }}", "undefined"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
@pytest.mark.parametrize("is_file", [True, False])
def test_a_template_that_renders_nothing_is_refused(
    tmp_path: Path, template: str, words: str, *, is_file: bool
) -> None:
    """While loading: each request would be refused, one by one, as if its caller were wrong."""
    write_model(tmp_path, tokenizer_config={"chat_template": "" if is_file else template})
    if is_file:
        (tmp_path / "chat_template.jinja").write_text(template)
    place = "chat_template.jinja" if is_file else "tokenizer_config.json"

    with pytest.raises(ModelError, match=rf"the chat template of .*{place} cannot be used: .*{words}"):
        load_tokenizer(tmp_path)


def test_a_template_may_insist_on_a_system_message(tmp_path: Path) -> None:
    """As long as some conversation is taken."""
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}ok"

    assert load_tokenizer(write_model(tmp_path, tokenizer_config={"chat_template": template})).has_template


@pytest.mark.parametrize("content", [{"content": "<s>", "lstrip": False}, "<s>"])
def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path: Path, content: object) -> None:
    """Older models keep them there, and a template that begins with one writes it."""
    config = {"chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    write_model(tmp_path, tokenizer_config=config, special_tokens_map={"bos_token": content, "eos_token": "</s>"})

    vocabulary = load_tokenizer(tmp_path)

    assert vocabulary.encode_chat(HELLO) == [256, *vocabulary.encode("hi", is_raw=False)]
    assert vocabulary.eos_ids == {257}


def test_tokens_that_only_the_configuration_has_are_tokens(tmp_path: Path) -> None:
    """Named ones, numbered ones and those of added_tokens.json: transformers adds them, and templates write them."""
    config = {"chat_template": "<|turn|>{{ messages[0].content }}<|done|>", "eos_token": "<|done|>"}
    write_model(tmp_path, tokenizer_config=config, added_tokens={"<|turn|>": 258})

    vocabulary = load_tokenizer(tmp_path)

    assert vocabulary.encode_chat(HELLO) == [258, *vocabulary.encode("hi", is_raw=False), 259]
    assert vocabulary.eos_ids == {259}


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Its ids would be beyond the model's; a token or two that were only added are known as such."""
    write_model(tmp_path, tokenizer_config={}, config={"vocab_size": 257})
    assert [load_tokenizer(tmp_path).is_known(token_id) for token_id in (256, 257)] == [True, False]

    write_model(tmp_path, tokenizer_config={}, config={"vocab_size": 200})
    with pytest.raises(ModelError, match=r"knows 256 tokens, but the model has only 200"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ['{"model": {"type": "BPE"}}', '{"model": 3}', '{"version": "9"'])
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    """In a sentence of ours."""
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(ModelError, match=r"tokenizer\.json is no tokenizer that can be read"):
        load_tokenizer(tmp_path)


def test_nothing_is_truncated(tmp_path: Path) -> None:
    """Some files ask for it, silently: a prompt that is too long is an error that the client reads."""
    vocabulary = load_tokenizer(write_model(tmp_path, tokenizer_config={}))

    assert len(vocabulary.encode("0123456789", is_raw=True)) == 10


def test_ids_beyond_the_vocabulary_are_known_as_such(tmp_path: Path) -> None:
    """They would be an index error on a device."""
    vocabulary = load_tokenizer(write_model(tmp_path, tokenizer_config={}))

    assert [vocabulary.is_known(token_id) for token_id in (0, 257, 258, -1)] == [True, True, False, False]


def test_the_mock_counts_its_tokens_as_the_toy_model_does() -> None:
    """Both sides of the process boundary must mean the same by an id."""
    assert mock_tokens.EOS == ByteTokenizer.EOS
    assert mock_tokens.VOCABULARY == ByteTokenizer.SIZE
    assert ByteTokenizer().encode("é", is_raw=True) == [256, 0xC3, 0xA9]


def test_tokens_of_a_vocabulary_that_is_not_made_of_bytes_are_spelled_as_in_a_text(tmp_path: Path) -> None:
    """With the space that decoders drop at the beginning of a text; and a single byte as that byte."""
    words = ["▁Hello", "▁there", "s", "<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer: Any = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = load_tokenizer(tmp_path)
    ids = [0, 1, 2, 3, 4, 5]

    assert [vocabulary.spell(one) for one in ids] == [b" Hello", b" there", b"s", b"\xe2", b"\x82", b"\xac"]
    assert b"".join(map(vocabulary.spell, ids)).decode() == f" {tokenizer.decode(ids)}"
