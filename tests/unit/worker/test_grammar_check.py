"""Grammars of strangers: what is wrong with one is told at once, with its place; none costs more than is bounded."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from zmqrt.protocol.errors import RequestError
from zmqrt.protocol.limits import MAX_GRAMMAR_CHARS
from zmqrt.protocol.tasks import Grammar
from zmqrt.worker.grammar_check import compile_grammar

MOST_CPU_S = 2.0
"""Generous: the promise is a second, and this machine may be slow. Of the processor's time, not the clock's."""


def nested(depth: int) -> object:
    """Make a schema of objects in objects."""
    made: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        made = {"type": "object", "properties": {"a": made}}
    return made


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object"},
        {"type": "array", "items": {"type": "integer"}},
        {"$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
        {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]+$"}]},
        {"properties": {"$ref": {"type": "string"}, "enum": {"type": "string"}}},
        {"const": {"$ref": "https://x.example/s.json"}},
        {"enum": [{"$ref": "other.json", "enum": ["x"]}, 1]},
        {"type": "string", "default": {"$ref": "x.json"}, "examples": ["x" * 9000], "description": "y" * 9000},
        nested(30),
    ],
)
def test_usual_schemas_are_taken(schema: object) -> None:
    """As text of the engine's own."""
    assert "json_schema" in compile_grammar(Grammar(kind="json_schema", text=json.dumps(schema)))


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", "{", "it is no JSON"),
        ("json_schema", "[]", "an object is meant"),
        ("json_schema", "false", "an object is meant"),
        ("json_schema", json.dumps({"properties": {"a": {"$ref": "https://x.example/s.json"}}}), "/properties/a/$ref"),
        ("json_schema", json.dumps({"properties": {"a": {"not": {"type": "null"}}}}), "/properties/a/not"),
        ("json_schema", json.dumps({"items": {"uniqueItems": True, "type": "array"}}), "/items/uniqueItems"),
        ("json_schema", json.dumps({"if": {}, "then": {"type": "null"}}), "json_schema"),
        ("json_schema", json.dumps({"$ref": "#/$defs/nobody"}), "nobody"),
        ("json_schema", json.dumps(nested(100)), "nests deeper than 64 levels"),
        ("json_schema", '{"items":' * 20_000 + "1" + "}" * 20_000, "nests deeper than 64 levels"),
        ("json_schema", json.dumps({"enum": list(range(30_000))}), "/enum: it has more than"),
        ("json_schema", json.dumps({"anyOf": [{} for _ in range(20_001)]}), "more than 20000 parts"),
        (
            "json_schema",
            json.dumps({"items": {"properties": {f"p{n}": {} for n in range(2000)}}}),
            "/items/properties: ",
        ),
        (
            "json_schema",
            json.dumps({"properties": {"a": {"const": "x" * 5000}}}),
            "/properties/a/const: it has more than",
        ),
        ("json_schema", json.dumps({"enum": ["a", "x" * 5000]}), "/enum/1: it has more than 4096"),
        ("json_schema", json.dumps({"required": ["x" * 5000]}), "/required/0: it has more than 4096"),
        ("json_schema", json.dumps({"properties": {"x" * 5000: {}}}), "it has more than 4096"),
        ("json_schema", json.dumps({"const": ["x" * 40] * 1000}), "/const: it has more than 32768"),
        ("json_schema", json.dumps({"type": "string", "pattern": "a" * 5000}), "/pattern: it has more than 4096"),
        (
            "json_schema",
            json.dumps({"properties": {"a": {"type": "string", "format": "odd"}}}),
            "/properties/a/format: ",
        ),
        ("json_schema", json.dumps({"type": "string", "pattern": "(?=a)b"}), "json_schema"),
        ("regex", "(", "regex"),
        ("regex", "(?!a)b", "regex"),
        ("regex", "a\\", "ends with a backslash"),
        ("regex", "a" * 40_000, "more than 32768"),
        ("lark", 'start: "' + "a" * 40_000 + '"', "more than 32768"),
        ("lark", "start: %json " + json.dumps({"items": {"$ref": "x.json"}}), "lark: %json: /items/$ref"),
        ("lark", "start: %json " + json.dumps({"const": "x" * 5000}), "lark: %json: /const: it has"),
        ("lark", "start: nobody", "nobody"),
        ("lark", "no grammar at all", "lark"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_with_its_place(kind: Any, text: str, words: str) -> None:
    """Within the time that is promised, in one line of bounded length."""
    began = time.process_time()
    with pytest.raises(RequestError) as caught:
        compile_grammar(Grammar(kind=kind, text=text))

    assert caught.value.code == 400
    assert caught.value.text.startswith("grammar: ")
    assert words in caught.value.text
    assert "\n" not in caught.value.text
    assert len(caught.value.text) <= 512
    assert time.process_time() - began < MOST_CPU_S


def objects(count: int, properties: int) -> list[dict[str, Any]]:
    """Make the schemas of objects whose properties have names of their own."""
    names = [[f"p{number}_{at}" for at in range(properties)] for number in range(count)]
    return [{"type": "object", "properties": {key: {"type": "null"} for key in one}} for one in names]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"anyOf": objects(2, 700)}, "/anyOf: its alternatives have 1400 properties that may be left out"),
        ({"items": {"oneOf": objects(100, 13)}}, "/items/oneOf: its alternatives have 1300"),
        (
            {"$defs": {"a": objects(1, 700)[0]}, "anyOf": [{"$ref": "#/$defs/a"}] * 2},
            "/anyOf: its alternatives have 1400",
        ),
        ({"prefixItems": objects(2, 900)}, "too many properties"),
    ],
)
def test_objects_may_be_too_much_together(schema: dict[str, Any], words: str) -> None:
    """Each of them alone is taken: an answer would fail in its middle, or the batch wait for seconds."""
    with pytest.raises(RequestError, match=words):
        compile_grammar(Grammar(kind="json_schema", text=json.dumps(schema)))


def test_the_longest_text_that_the_wire_lets_through_costs_bounded_time() -> None:
    """Whatever it is made of: one long string, many alternatives, many rules."""
    most = MAX_GRAMMAR_CHARS
    hostile = [
        Grammar(kind="json_schema", text=json.dumps({"const": "x" * (most - 100)})),
        Grammar(kind="json_schema", text=json.dumps({"anyOf": [{"const": n} for n in range(4000)]})),
        Grammar(kind="json_schema", text=json.dumps({"enum": [f"{n:0>40}" for n in range(5000)]})),
        Grammar(kind="regex", text="|".join(f"{n:x}" for n in range(most // 7))),
        Grammar(kind="regex", text="(" * (most // 2) + ")" * (most // 2)),
        Grammar(kind="regex", text="((a{1,1000}){1,1000}){1,1000}"),
        Grammar(kind="lark", text="start: " + "|".join(f'"{n:x}"' for n in range(most // 10))),
    ]
    for grammar in hostile:
        began = time.process_time()
        try:
            compile_grammar(grammar)
        except RequestError as error:
            assert error.code == 400
        assert time.process_time() - began < MOST_CPU_S, f"{grammar.kind} {grammar.text[:40]}"


def test_schemas_in_a_grammar_may_be_as_large_as_by_themselves() -> None:
    """Many tools come as one grammar; a text that looks like a schema is a text."""
    large = json.dumps({"properties": {"a": {"type": "string", "description": "x" * 60_000}}})
    text = f'start: "%json {{" (a | b)\na: %json {large}\nb: %json {{"const": "%json {{}}"}}'

    assert json.loads(compile_grammar(Grammar(kind="lark", text=text)))["grammars"][1]["lark_grammar"] == text
