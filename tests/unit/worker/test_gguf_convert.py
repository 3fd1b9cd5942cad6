"""The GGUF converter on a file made here: names, row order, rounding, tokenizer, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from support.gguf_files import HEAD_DIM, KV_HEADS, vocabulary, write_gguf
from zmqrt.worker.gguf_convert import convert_gguf
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.weights import to_bfloat16


def read_bits(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file of bfloat16 by hand, as the bits."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    body = content[8 + length :]
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], np.uint16).reshape(entry["shape"])
        for name, entry in header.items()
    }


def test_weights_come_out_named_ordered_and_rounded(tmp_path: Path) -> None:
    """Every tensor is there under transformers' name, q and k in its order, rounded to bfloat16."""
    expected = write_gguf(tmp_path / "model.gguf")
    heard: list[float] = []

    convert_gguf(tmp_path / "model.gguf", tmp_path, heard.append)

    found = read_bits(tmp_path / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[name] == to_bfloat16(values)).all() for name, values in expected.items())
    assert heard == sorted(heard)
    assert heard[-1] == 100.0


def test_configuration_says_what_the_file_says(tmp_path: Path) -> None:
    """Shapes, rotary base, tied head; EOS is the end of a turn, in all three files."""
    write_gguf(tmp_path / "model.gguf")

    convert_gguf(tmp_path / "model.gguf", tmp_path, lambda _percent: None)

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_key_value_heads"] == KV_HEADS
    assert config["head_dim"] == HEAD_DIM
    assert config["rope_theta"] == 5000.0
    assert config["tie_word_embeddings"] is True
    eos = vocabulary().index("<|im_end|>")
    assert (
        config["eos_token_id"] == json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == eos
    )
    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer_config["eos_token"] == "<|im_end|>"
    assert tokenizer_config["model_max_length"] == 64
    assert tokenizer_config["clean_up_tokenization_spaces"] is False
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"


def test_tokenizer_merges_splits_digits_and_knows_specials(tmp_path: Path) -> None:
    """The flavour `smollm` takes numbers digit by digit; specials are one token; decoding gives the text back."""
    write_gguf(tmp_path / "model.gguf")
    convert_gguf(tmp_path / "model.gguf", tmp_path, lambda _percent: None)

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    encoding = tokenizer.encode("he 12é<|im_end|>")

    assert encoding.tokens == ["he", "Ġ", "1", "2", "Ã", "©", "<|im_end|>"]
    assert tokenizer.decode(encoding.ids) == "he 12é"


@pytest.mark.parametrize(
    ("architecture", "flavour", "words"), [("falcon", "smollm", "architecture 'falcon'"), ("llama", "tekken", "tekken")]
)
def test_what_is_not_understood_is_refused(tmp_path: Path, architecture: str, flavour: str, words: str) -> None:
    """A model converted wrongly would answer nonsense; better no model."""
    write_gguf(tmp_path / "model.gguf", architecture=architecture, flavour=flavour)

    with pytest.raises(ModelError, match=words):
        convert_gguf(tmp_path / "model.gguf", tmp_path, lambda _percent: None)


def test_file_cut_off_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Wherever a download stopped, the error names the file; nothing else escapes."""
    path = tmp_path / "model.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    cuts = [whole[: len(whole) * share // 100] for share in (0, 1, 5, 20, 60, 99)]

    for content in [*cuts, b"nothing of the kind, but long enough to look at", b"GGUF" + b"\xff" * 60]:
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"model\.gguf is (empty|not a readable GGUF file)"):
            convert_gguf(path, tmp_path, lambda _percent: None)
