"""Texts by the line: each keeps its place, and one that is none is named by its number."""

import io
import sys
from pathlib import Path

import click
import pytest

from zmqrt.client.cli.text_lines import read_texts


def test_each_line_is_a_text(tmp_path: Path) -> None:
    """Whatever ends it, and whatever else some take for the end of a line."""
    file = tmp_path / "texts"
    file.write_bytes("one\r\ntw\u2028o\n three \n".encode())

    assert read_texts(str(file)) == ["one", "tw\u2028o", " three "]


def test_lines_of_json_are_strings_or_objects_with_a_text(tmp_path: Path) -> None:
    """What else is in an object is its owner's."""
    file = tmp_path / "texts.jsonl"
    file.write_text('"one\\ntwo"\n{"text": "three", "id": 3}\n', encoding="utf-8")

    assert read_texts(str(file)) == ["one\ntwo", "three"]


def test_a_pipe_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere, by a dash."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb")))

    assert read_texts("-") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("texts", "a\n\nb\n", "line 2: a text is meant, and not an empty one"),
        ("texts", "", "texts is empty"),
        ("texts", "\n", "line 1: a text is meant"),
        ("texts.jsonl", '"a"\n{"title": "b"}\n', "line 2: a JSON string, or an object with a `text`, is meant"),
        ("texts.jsonl", '"a"\nb\n', "line 2"),
        ("texts.jsonl", "[]", "line 1"),
    ],
)
def test_what_is_no_text_is_named_by_its_line(tmp_path: Path, name: str, given: str, words: str) -> None:
    """Left out, it would move all that follow."""
    file = tmp_path / name
    file.write_text(given, encoding="utf-8")

    with pytest.raises(click.UsageError) as caught:
        read_texts(str(file))
    assert words in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """As a mistake of the command line."""
    with pytest.raises(click.UsageError, match="nowhere: No such file"):
        read_texts(str(tmp_path / "nowhere"))
