"""Answers that other projects test their parsers with, cut at every byte: their calls, their thoughts, their words.

`recorded/*.toml` names where each is from. What stands around a text is compared without its white space, on which
parsers differ; arguments as JSON, or as the beginning of one where the answer was cut short.
"""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zmqrt.protocol.markup import MARKUP, AnswerParser, CalledTool, Content, Delta, Reasoning
from zmqrt.protocol.thoughts import thought_units

FAMILIES = {path.stem: tomllib.loads(path.read_text("utf-8")) for path in Path(__file__).parent.glob("recorded/*.toml")}


def told(text: list[bytes], family: dict[str, Any]) -> list[Delta]:
    """Read an answer whose bytes come in pieces, as a node writes them: half a character waits."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    parser = AnswerParser(
        family.get("texts", {}) | dict.fromkeys(set(family["tools"]) - {*family.get("texts", {})}, ())
    )
    return [delta for piece in text for delta in parser.feed(decode(piece))] + parser.finish()


def joined(deltas: list[Delta]) -> tuple[str, str, list[list[str]]]:
    """Put together what is said, thought and called."""
    return (
        "".join(delta.text for delta in deltas if isinstance(delta, Content)),
        "".join(delta.text for delta in deltas if isinstance(delta, Reasoning)),
        [[delta.name, delta.arguments] for delta in deltas if isinstance(delta, CalledTool)],
    )


def read(arguments: str) -> Any:
    """Read arguments as JSON; those that were cut short are a text."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def squeezed(text: str) -> str:
    """Make all white space one blank."""
    return re.sub(r"\s+", " ", text).strip()


def answers() -> Iterator[Any]:
    """Yield every recorded answer with its family."""
    for name, family in FAMILIES.items():
        for number, answer in enumerate(family["answer"]):
            yield pytest.param(family, answer, id=f"{name}-{number}")


def test_there_are_answers_of_at_least_six_families() -> None:
    """As many as the parser says that it knows."""
    assert FAMILIES.keys() >= {"hermes", "qwen_coder", "llama", "mistral", "gpt_oss", "glm", "deepseek"}
    assert all(answer["from"] for family in FAMILIES.values() for answer in family["answer"])


@pytest.mark.parametrize(("family", "answer"), list(answers()))
def test_a_recorded_answer_is_what_others_read_in_it(family: dict[str, Any], answer: dict[str, Any]) -> None:
    """Whole; a thought that the prompt began has its mark in front, as a node writes it."""
    content, reasoning, calls = joined(told([(answer.get("begun", "") + answer["text"]).encode()], family))

    assert [(name, read(arguments)) for name, arguments in calls] == [
        (name, read(arguments)) for name, arguments in answer.get("calls", [])
    ]
    assert squeezed(reasoning) == squeezed(answer.get("reasoning", ""))
    assert squeezed(content) == squeezed(answer.get("content", ""))


@pytest.mark.parametrize(("family", "answer"), list(answers()))
def test_it_is_the_same_cut_at_every_byte_and_no_mark_is_ever_content(
    family: dict[str, Any], answer: dict[str, Any]
) -> None:
    """In two at each place, and byte by byte: joined equals whole; and whatever an answer ends in the middle of."""
    text = (answer.get("begun", "") + answer["text"]).encode()
    whole = joined(told([text], family))
    step = 1 + len(text) // 300

    assert joined(told([text[at : at + 1] for at in range(len(text))], family)) == whole
    for at in range(0, len(text), step):
        first, second = text[:at], text[at:]
        assert joined(told([first, second], family)) == whole
        said = joined(told([first], family))[0]
        assert not any(mark in said for mark in MARKUP)


@pytest.mark.parametrize(("family", "answer"), list(answers()))
def test_thoughts_are_counted_wherever_units_end(family: dict[str, Any], answer: dict[str, Any]) -> None:
    """By characters as units: those of the thoughts and their marks, and none where nothing was thought."""
    text = answer.get("begun", "") + answer["text"]
    count = thought_units(list(text))

    assert bool(count) == bool(answer.get("reasoning"))
    assert count == 0 or len(answer["reasoning"]) <= count <= len(text)
