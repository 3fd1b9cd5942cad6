"""A damaged GGUF file ends in one sentence that names it, wherever the damage is."""

import random
import struct
from pathlib import Path

import pytest

from support import broken_models as broken
from support.gguf_files import LAYERS, write_gguf
from support.tiny import silent
from zmqrt.worker.gguf_convert import convert_gguf
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.model_sources import resolve

pytestmark = pytest.mark.usefixtures("own_cache")


def refused(path: Path, words: str) -> None:
    """Expect one sentence that names the file."""
    with pytest.raises(ModelError, match=words) as caught:
        resolve(str(path), progress=silent)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("content", sorted(broken.NOT_MODELS))
def test_what_is_no_gguf_file_is_told_from_one(tmp_path: Path, content: str) -> None:
    """As for every other file of a model."""
    (tmp_path / "model.gguf").write_bytes(broken.NOT_MODELS[content])

    words = {"empty": "is empty", "lfs": "git lfs pull", "html": "a web page"}
    refused(tmp_path / "model.gguf", words.get(content, "does not begin with GGUF"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_count": None}, "do not say llama.attention.head_count"),
        ({"head_count": 0}, "which is not one number above zero"),
        ({"head_count": [2, 1]}, r"say llama.attention.head_count = \[2, 1\]"),
        ({"head_count": "two"}, "which is not one number"),
        ({"embedding_length": None}, "do not say llama.embedding_length"),
        ({"context_length": None}, "do not say llama.context_length"),
        ({"block_count": LAYERS + 1}, r"lacks tensors of its model .*: blk\.2\."),
        ({"block_count": LAYERS - 1}, r"of 1 layers has: blk\.1\."),
        ({"block_count": 2**31}, "2147483648 layers"),
        ({"feed_forward_length": 25}, "not what its metadata say"),
        ({"tokens": None}, "no vocabulary"),
        ({"tokens": "many"}, "no vocabulary"),
        ({"tokens": ["a"]}, "of what kind each token is|do not fit"),
        ({"token_type": None}, "of what kind each token is"),
        ({"token_type": [1, 2]}, "of what kind each token is"),
        ({"merges": None}, "cannot be converted"),
        ({"merges": ["q zz"]}, "do not fit together"),
        ({"merges": ["nospace"]}, "cannot be converted|do not fit together"),
        ({"model": 5}, "tokenizer"),
    ],
)
def test_metadata_that_are_not_a_models_are_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """Missing, of another type, too large, or of another model."""
    write_gguf(tmp_path / "model.gguf", changes=changes)

    refused(tmp_path / "model.gguf", words)


def test_numbers_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    """Rounding would make zeros of some and infinity of others."""
    write_gguf(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(content[:-4] + struct.pack("<f", float("nan")))

    refused(tmp_path / "model.gguf", "numbers that are not finite")


def test_the_other_order_of_bytes_and_other_versions_are_named(tmp_path: Path) -> None:
    """One that is written by a big machine, and one of the days before version 2."""
    path = tmp_path / "model.gguf"
    write_gguf(path)
    content = path.read_bytes()

    path.write_bytes(content[:4] + struct.pack(">I", 3) + content[8:])
    refused(path, "big-endian")

    path.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    refused(path, "its version is 1")


def test_a_file_without_tensors_says_so(tmp_path: Path) -> None:
    """Some hold a vocabulary alone."""
    path = tmp_path / "model.gguf"
    write_gguf(path)
    content = path.read_bytes()
    end = content.index(struct.pack("<Q", len("token_embd.weight")) + b"token_embd.weight")
    path.write_bytes(content[:8] + struct.pack("<Q", 0) + content[16:end] + bytes(64))

    refused(path, "none at all")


def test_whatever_byte_is_wrong_the_words_are_ours(tmp_path: Path) -> None:
    """Three hundred files with a few bytes changed in what describes the model: converted, or refused by name."""
    path = tmp_path / "model.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    described = whole.index(b"blk.1.ffn_down.weight") + 64
    seed = random.randrange(2**32)
    rng = random.Random(seed)

    for number in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(8, described)
            content[at : at + 8] = rng.choice(
                [b"\xff" * 8, bytes(8), rng.randbytes(8), b"\x7f" + content[at + 1 : at + 8]]
            )
        path.write_bytes(content)
        target = tmp_path / f"out-{number}"
        target.mkdir()
        try:
            convert_gguf(path, target, lambda _percent: None)
        except ModelError as error:
            assert "model.gguf" in str(error), f"seed {seed}, file {number}"
        except BaseException as error:
            raise AssertionError(f"seed {seed}, file {number}: {type(error).__name__} escaped") from error
