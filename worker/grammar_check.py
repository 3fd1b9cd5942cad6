"""Looks at the grammar of a request before an engine sees it: what is wrong with it is a 400 that says where.

A grammar is a program of a stranger. What it may cost is bounded here: its size, how deep it nests, how many parts it
has, and (by llguidance's own fuel) the work to compile it. Nothing that it names is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, cast

import msgspec

from ..protocol.errors import ErrorKind, RequestError, request_error
from ..protocol.tasks import Grammar
from .engines.grammar import bounds, in_short

_MAX_DEPTH: Final = 64
_MAX_PARTS: Final = 20_000
_MAX_CHOICES: Final = 5000
"""Values of one `enum`, as many as a mask is made from in a few milliseconds."""
_QUOTED: Final = re.compile(r'"([^"]+)"')


def compile_grammar(grammar: Grammar) -> str:
    """Return a grammar as engines take it.

    Raises:
        RequestError: (400) it is none, or one that cannot be kept to, with the place in it.
    """
    schema = _read_schema(grammar.text) if grammar.kind == "json_schema" else None
    compiled = _translate(grammar, schema)
    fault = _fault_in(compiled)
    if fault is not None:
        raise _bad(f"{grammar.kind}{_place_of(fault, schema)}: {fault}")
    return compiled


def _translate(grammar: Grammar, schema: object) -> str:
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            # Without white space between its parts: a weak model fills an answer with blanks as long as it may.
            text = "{}" if schema is True else grammar.text
            return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)


def _fault_in(compiled: str) -> str | None:
    from llguidance import LLMatcher

    is_error, words = LLMatcher.validate_grammar_with_warnings(compiled, limits=bounds())
    return in_short(" ".join(words)) if is_error else None


def _read_schema(text: str) -> object:
    """Read a JSON schema and look at its shape. Raises RequestError (400) with the path of what is too much."""
    try:
        schema: object = msgspec.json.decode(text)
    except RecursionError:
        raise _bad(f"json_schema: it nests deeper than {_MAX_DEPTH} levels") from None
    except msgspec.DecodeError as error:
        raise _bad(f"json_schema: it is no JSON: {error}") from None
    if schema is not True and not isinstance(schema, dict):
        raise _bad("json_schema: an object is meant (or true: any JSON), as https://json-schema.org describes")
    for parts, (path, value) in enumerate(_walk(schema)):
        if parts > _MAX_PARTS:
            raise _bad(f"json_schema: it has more than {_MAX_PARTS} parts")
        if len(path) > _MAX_DEPTH:
            raise _bad(f"json_schema: {_show(path)}: it nests deeper than {_MAX_DEPTH} levels")
        if path and path[-1] == "$ref" and isinstance(value, str) and not value.startswith("#"):
            raise _bad(f"json_schema: {_show(path)}: {value[:100]!r} is somewhere else, and nothing is fetched")
        if path and path[-1] == "enum" and isinstance(value, list) and len(value) > _MAX_CHOICES:
            raise _bad(f"json_schema: {_show(path)}: it has more than {_MAX_CHOICES} values")
    return schema


def _walk(schema: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Go through all of a schema, outer parts first; stops going down one level below the deepest that is allowed."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), schema)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if len(path) > _MAX_DEPTH:
            continue
        if isinstance(value, dict):
            inner = cast("dict[str, object]", value).items()
            waiting += [((*path, name), part) for name, part in inner]
        elif isinstance(value, list):
            waiting += [((*path, str(number)), part) for number, part in enumerate(cast("list[object]", value))]


def _place_of(fault: str, schema: object) -> str:
    """Name where a keyword stands that a fault is about: llguidance says which, and not where."""
    if not isinstance(schema, dict):
        return ""
    for name in _QUOTED.findall(fault):
        for path, _ in _walk(schema):
            if path and path[-1] == name:
                return f": {_show(path)}"
    return ""


def _show(path: tuple[str, ...]) -> str:
    """Write a path as a JSON pointer, the middle of a long one left out."""
    words = ["", *(part.replace("~", "~0").replace("/", "~1") for part in path)]
    shown = "/".join(words)
    return shown if len(shown) <= 200 else f"{shown[:100]}…{shown[-90:]}"


def _bad(text: str) -> RequestError:
    return request_error(ErrorKind.BAD_REQUEST, f"grammar: {text}")
