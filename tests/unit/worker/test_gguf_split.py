"""A GGUF model in several files is read whole or not at all."""

import json
from pathlib import Path

import pytest

from support.broken_models import WEIGHTS, read_tensors
from support.gguf_files import copy_of, split_gguf, vocabulary, write_gguf
from support.tiny import silent
from zmqrt.worker.gguf_convert import convert_gguf
from zmqrt.worker.gguf_file import find_parts
from zmqrt.worker.model_files import ModelError
from zmqrt.worker.model_sources import ModelFiles, resolve

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """One model in three files."""
    folder = tmp_path / "split"
    folder.mkdir()
    return split_gguf(folder)


def found(path: Path) -> ModelFiles:
    """Resolve a path."""
    return resolve(str(path), progress=silent)


def test_any_part_stands_for_the_model(parts: list[Path], tmp_path: Path) -> None:
    """With the others beside it: the same weights, to the last byte, as from one file."""
    assert len(parts) == 3
    write_gguf(tmp_path / "whole.gguf")
    right = read_tensors(found(tmp_path / "whole.gguf").path / WEIGHTS)

    ready = [found(part) for part in parts]

    assert [read_tensors(one.path / WEIGHTS) for one in ready] == [right] * 3
    assert len({one.revision for one in ready}) == 1


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_part_that_is_missing_is_named(parts: list[Path], gone: int) -> None:
    """Whichever it is, and whichever was asked for."""
    parts[gone].unlink()

    for part in parts[:gone] + parts[gone + 1 :]:
        with pytest.raises(
            ModelError, match=rf"one of 3 files .* model-0000{gone + 1}-of-00003\.gguf is not beside it"
        ):
            found(part)


def test_a_part_alone_and_by_another_name_is_refused(parts: list[Path]) -> None:
    """Its siblings cannot be found; what it should be called can be said."""
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))

    with pytest.raises(ModelError, match="part 1 of 3 of a model; name it NAME-00001-of-00003"):
        found(renamed)


def test_a_part_in_place_of_another_is_refused(parts: list[Path]) -> None:
    """The name says one thing, the file another."""
    parts[1].write_bytes(parts[2].read_bytes())

    with pytest.raises(ModelError, match=r"00002-of-00003\.gguf says that it is part 3 of 3"):
        found(parts[0])


def test_a_part_that_was_cut_off_is_named(parts: list[Path]) -> None:
    """And not the first one, which was asked for."""
    parts[2].write_bytes(parts[2].read_bytes()[:-200])

    with pytest.raises(ModelError, match=r"model-00003-of-00003\.gguf is not a readable GGUF file: it ends within"):
        found(parts[0])


def test_parts_of_another_model_are_refused(parts: list[Path], tmp_path: Path) -> None:
    """Their tensors are there twice, or are not those that are missing."""
    other = tmp_path / "other"
    other.mkdir()
    (two, *_) = copy_of([split_gguf(other, parts=2, name="model")[1]], tmp_path / "mixed")
    parts[1].write_bytes(two.read_bytes())

    with pytest.raises(ModelError, match="says that it is part 2 of 2"):
        found(parts[0])


def test_a_name_alone_makes_no_parts(tmp_path: Path) -> None:
    """A whole file may be called so."""
    write_gguf(tmp_path / "model-00001-of-00002.gguf")

    assert find_parts(tmp_path / "model-00001-of-00002.gguf") == [tmp_path / "model-00001-of-00002.gguf"]
    assert found(tmp_path / "model-00001-of-00002.gguf").context == 64


def test_ends_of_turns_and_of_messages_are_ends(tmp_path: Path) -> None:
    """The file names three kinds; an id that is no token's is none."""
    im_end = vocabulary().index("<|im_end|>")
    write_gguf(tmp_path / "model.gguf", changes={"eot_token_id": 3, "eom_token_id": 99999})

    convert_gguf(tmp_path / "model.gguf", tmp_path, lambda _percent: None)

    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [3, im_end]


@pytest.mark.parametrize(("is_asked", "begins"), [(True, True), (False, False)])
def test_a_text_begins_as_the_file_says(tmp_path: Path, *, is_asked: bool, begins: bool) -> None:
    """With the token for it, if add_bos_token is set."""
    from zmqrt.worker.tokenizer import load_tokenizer

    template = "{{ messages[0].content }}"
    changes: dict[str, object] = {"bos_token_id": 7, "add_bos_token": is_asked, "chat_template": template}
    write_gguf(tmp_path / "model.gguf", changes=changes)

    convert_gguf(tmp_path / "model.gguf", tmp_path, lambda _percent: None)

    assert (load_tokenizer(tmp_path).encode("hi", is_raw=False)[0] == 7) is begins
