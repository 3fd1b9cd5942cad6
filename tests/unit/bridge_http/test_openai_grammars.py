"""What requests call the grammar of their answer: one grammar, or a refusal, and never a text that keeps to nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zmqrt.bridge_http.openai.grammars import grammar_of
from zmqrt.bridge_http.openai.requests import parse
from zmqrt.bridge_http.openai.schema import ChatRequest
from zmqrt.protocol.tasks import Grammar


def asked(**fields: Any) -> Grammar | None:
    """Read the grammar of a chat."""
    body = {"model": "m", "messages": [{"role": "user", "content": "?"}], **fields}
    return grammar_of(parse(json.dumps(body).encode(), ChatRequest))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, "{}"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": True}}}, "true"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": False}}}, "false"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "{}"),
        ({"response_format": {"type": "json_object"}}, '{"type":"object"}'),
        ({"structured_outputs": {"json": {}}}, "{}"),
        ({"guided_json": {}}, "{}"),
        ({"json_schema": {}}, "{}"),
        ({"format": {}}, "{}"),
        ({"format": "json"}, '{"type":"object"}'),
    ],
)
def test_an_empty_schema_is_one_and_asks_for_json(fields: dict[str, Any], text: str) -> None:
    """Whoever reads the answer will parse it; what no answer can keep to is refused by the node."""
    assert asked(**fields) == Grammar(kind="json_schema", text=text)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"guided_json": False, "json_schema": None, "format": "", "regex": "", "guided_choice": []},
        {"guided_json_object": False, "structured_outputs": {}},
    ],
)
def test_what_says_nothing_asks_for_nothing(fields: dict[str, Any]) -> None:
    """As such clients send it."""
    assert asked(**fields) is None


def test_choices_are_whole_texts_whatever_stands_in_them() -> None:
    """None of their characters is one of a pattern, and the empty text is one."""
    assert asked(guided_choice=["a.b", "(c"]) == Grammar(kind="regex", text=r"a\.b|\(c")
    assert asked(guided_choice=[""]) == Grammar(kind="regex", text="()")
