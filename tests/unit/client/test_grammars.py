"""What callers say that an answer keeps to becomes one grammar."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from zmqrt.client import grammars
from zmqrt.protocol.errors import RequestError


class Struct(msgspec.Struct):
    """A type of msgspec."""

    n: int


class Model(BaseModel):
    """A type of pydantic."""

    n: int


@dataclasses.dataclass
class Data:
    """A dataclass."""

    n: int


@pytest.mark.parametrize("kind", [Struct, Model, Data, list[int], dict[str, bool]])
def test_types_say_what_they_look_like(kind: Any) -> None:
    """Msgspec knows its own, dataclasses and what the standard library has; pydantic its own."""
    fields = {"prompt": "hi", "schema": kind}

    grammar = grammars.take_from(fields)

    assert grammar is not None
    assert grammar["kind"] == "json_schema"
    assert isinstance(msgspec.json.decode(grammar["text"]), dict)
    assert fields == {"prompt": "hi"}


def test_a_text_and_a_map_are_taken_as_they_are() -> None:
    """In the order of the map: answers have their properties in it."""
    given: dict[str, Any] = {"properties": {"z": {}, "a": {}}}

    assert grammars.schema_text(given) == '{"properties":{"z":{},"a":{}}}'
    assert grammars.schema_text(" {} ") == " {} "
    assert grammars.take_from({"regex": "a+"}) == {"kind": "regex", "text": "a+"}
    assert grammars.take_from({"lark": 'start: "a"'}) == {"kind": "lark", "text": 'start: "a"'}
    assert grammars.take_from({"schema": None, "regex": None}) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema": {}, "lark": "start: x"}, "schema and lark: "),
        ({"schema": object()}, "schema: object says no JSON Schema"),
        ({"schema": {"a": object()}}, "schema: dict says no JSON Schema"),
        ({"regex": 5}, "regex: expected text, got int"),
        ({"lark": b"start"}, "lark: expected text, got bytes"),
    ],
)
def test_what_is_none_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    """Before anything is sent."""
    with pytest.raises(RequestError, match=words):
        grammars.take_from(fields)
