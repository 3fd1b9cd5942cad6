"""A prompt has the tokens that transformers gives it, whichever file of a model names its special ones."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from support import broken_models as broken
from support.tiny import tiny_model
from zmqrt.protocol.tasks import ChatMessage, Rendering
from zmqrt.worker.tokenizer import load_tokenizer

pytestmark = pytest.mark.integration

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    ChatMessage(role="user", content="Hello wörld"),
    ChatMessage(role="assistant", content="ok"),
    ChatMessage(role="user", content="x  y"),
]
TEXT = "Hi <bos> <x> ba <|im_end|> there"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has three special tokens, and whose files name no beginning."""
    return tiny_model(tmp_path_factory.mktemp("models"), "layers=1,hidden=32")


def token(content: str) -> dict[str, object]:
    """Write a token as tokenizer_config.json does."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, "special": True, **flags}


LISTED = {"256": token("<|endoftext|>"), "257": token("<|im_start|>"), "258": token("<|im_end|>")}


@pytest.mark.parametrize(
    ("tokenizer_config", "other_files"),
    [
        ({}, {}),
        ({}, {"special_tokens_map": {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}}),
        ({}, {"special_tokens_map": {"bos_token": token("<|endoftext|>")}}),
        ({"bos_token": "<|im_start|>"}, {"special_tokens_map": {"bos_token": "<|endoftext|>"}}),
        ({"added_tokens_decoder": LISTED}, {"special_tokens_map": {"bos_token": "<|endoftext|>"}}),
        ({"added_tokens_decoder": {**LISTED, "512": token("<bos>")}, "bos_token": "<bos>"}, {}),
        ({"bos_token": "<bos>", "eos_token": "<eot>"}, {"added_tokens": {"<bos>": 512, "<eot>": 513}}),
        ({"bos_token": "<bos>"}, {}),
        ({"bos_token": "ba"}, {}),
        ({"bos_token": "<|endoftext|>", "add_bos_token": True}, {}),
        ({"extra_special_tokens": ["<x>"], "bos_token": "<x>"}, {}),
        ({"additional_special_tokens": ["<x>"]}, {}),
        ({"bos_token": None}, {}),
    ],
)
def test_prompts_have_the_tokens_of_transformers(
    whole: Path, tmp_path: Path, tokenizer_config: dict[str, object], other_files: dict[str, object]
) -> None:
    """Conversations and plain text, to the last id: a model without its first token answers noticeably worse."""
    from transformers import AutoTokenizer

    model = broken.copy(whole, tmp_path / "model")
    broken.edit_json(model / "tokenizer_config.json", **tokenizer_config)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    for name, content in other_files.items():
        (model / f"{name}.json").write_text(json.dumps(content))
    reference: Any = cast("Any", AutoTokenizer).from_pretrained(model)
    talk = [{"role": one.role, "content": one.content} for one in TALK]

    ours = load_tokenizer(model)

    assert ours.encode_chat(TALK) == reference.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert ours.encode(TEXT, is_raw=True) == reference(TEXT).input_ids
    assert reference.eos_token_id in ours.eos_ids


STRIPPING = TEMPLATE.replace("message['content']", "message['content'] | trim")


@pytest.mark.parametrize("template", [TEMPLATE, STRIPPING])
def test_an_answer_that_is_gone_on_with_has_the_tokens_of_transformers(
    whole: Path, tmp_path: Path, template: str
) -> None:
    """Blanks at its end included, as far as the template writes them; and so have values for the template."""
    from transformers import AutoTokenizer

    model = broken.copy(whole, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{{ date | default('') }}" + template)
    reference: Any = cast("Any", AutoTokenizer).from_pretrained(model)
    tokenizer = load_tokenizer(model)
    rendering = Rendering(kwargs={"date": "May"}, continue_final_message=True)
    for begun in ("Once", "Once upon ", " So\n\n", "x  y"):
        turns = [*TALK, ChatMessage(role="assistant", content=begun)]
        talk = [{"role": one.role, "content": one.content} for one in turns]
        expected = reference.apply_chat_template(talk, continue_final_message=True, date="May", return_dict=False)

        assert tokenizer.encode_chat(turns, rendering=rendering) == expected
