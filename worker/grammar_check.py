"""Looks at the grammar of a request before an engine sees it: what is wrong with it is a 400 that says where.

A grammar is a program of a stranger. What it may cost is bounded here: its size, how deep it nests, how many parts it
has, and (by llguidance's own fuel) the work to compile it. Nothing that it names is fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Final, Literal, cast

import msgspec

from ..protocol.errors import ErrorKind, RequestError, request_error
from ..protocol.tasks import Grammar
from .engines.grammar import bounds, in_short

_MAX_DEPTH: Final = 64
_MAX_PARTS: Final = 20_000
_MAX_CHOICES: Final = 5000
"""Values of one `enum`, as many as a mask is made from in a few milliseconds."""
_MAX_PROPERTIES: Final = 1000
"""Of one object: what they cost to compile grows by their square. 1000 cost 70 ms, for which a whole batch waits."""
_MAX_SQUARES: Final = _MAX_PROPERTIES**2
"""Of all objects together, by the same measure: eight of 1000 would take 5 s."""
_MAX_LEFT_OUT: Final = 1250
"""Properties that may come next at one place, of all alternatives there: llguidance is let go four ways for each."""
_MAX_LITERAL: Final = 4096
"""Characters of one value, name or pattern that answers are to have: each mask costs a microsecond for four of them."""
_MAX_OWN_CHARS: Final = 32 << 10
"""A pattern, or Lark without the schemas in it: a mask of it costs 6 ms at worst."""
_UNFORCED: Final = '%llguidance {"no_forcing": true}\nstart: @answer'
_QUOTED: Final = re.compile(r'"([^"]+)"')
_NAMES: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_VALUES: Final = frozenset({"const", "enum", "required"})
_NOTES: Final = frozenset({"default", "examples"})
_In = Literal["schema", "names", "values", "notes"]


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a schema; `keyword`: what it says, if it stands there as one; `place`: what stands inside it."""

    path: tuple[str, ...]
    value: object
    keyword: str
    place: _In


def compile_grammar(grammar: Grammar) -> str:
    """Return a grammar as engines take it.

    Raises:
        RequestError: (400) it is none, or one that cannot be kept to, with the place in it.
    """
    schema: object = None
    match grammar.kind:
        case "json_schema":
            schema = _read_schema(grammar.text)
        case "regex":
            _check_own(grammar.kind, grammar.text)
            if (len(grammar.text) - len(grammar.text.rstrip("\\"))) % 2:
                raise _bad("regex: it ends with a backslash that nothing follows")
        case "lark":
            _check_lark(grammar.text)
    compiled = _translate(grammar, schema)
    fault = _fault_in(compiled)
    if fault is not None:
        raise _bad(f"{grammar.kind}{_place_of(fault, schema)}: {fault}")
    return compiled


def _translate(grammar: Grammar, schema: object) -> str:
    """Write a grammar for llguidance, below one that does not let it force texts.

    It would spell what must come next to the end with each mask, and a stranger can make that as long as he likes.
    """
    from llguidance import LLMatcher

    if grammar.kind == "json_schema":
        # Without white space between its parts: a weak model fills an answer with blanks as long as it may.
        text = "{}" if schema is True else grammar.text
        made = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
    elif grammar.kind == "regex":
        made = LLMatcher.grammar_from_regex(grammar.text)
    else:
        made = json.dumps({"grammars": [{"lark_grammar": grammar.text}]})
    (inner,) = json.loads(made)["grammars"]
    return json.dumps({"grammars": [{"lark_grammar": _UNFORCED}, {**inner, "name": "answer"}]})


def _fault_in(compiled: str) -> str | None:
    from llguidance import LLMatcher

    is_error, words = LLMatcher.validate_grammar_with_warnings(compiled, limits=bounds())
    return in_short(" ".join(words)) if is_error else None


def _check_lark(text: str) -> None:
    """Look at the schemas that stand in a grammar, and at the size of the rest."""
    own, begin = "", 0
    for found in re.finditer(r"%json\s*(?=\{)", text):
        if found.start() < begin:
            continue  # in a text of the schema before it
        try:
            schema, end = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError):
            continue  # a text of its own, or none: llguidance knows
        _check_schema(schema, "lark: %json")
        own, begin = own + text[begin : found.end()], end
    _check_own("lark", own + text[begin:])


def _check_own(kind: str, text: str) -> None:
    if len(text) > _MAX_OWN_CHARS:
        raise _bad(f"{kind}: it has {len(text)} characters, more than {_MAX_OWN_CHARS}")


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
    read = cast("dict[str, object] | bool", schema)
    _check_schema(read, "json_schema")
    return read


def _check_schema(schema: object, kind: str) -> None:
    squares = 0
    for number, part in enumerate(_walk(schema)):
        if number > _MAX_PARTS:
            raise _bad(f"{kind}: it has more than {_MAX_PARTS} parts")
        fault = _too_much(part) or _too_wide(part, schema)
        squares += _size_of(part.value) ** 2 if part.keyword == "properties" else 0
        if squares > _MAX_SQUARES:
            fault = fault or "up to here there are too many properties; let objects have fewer"
        if fault is not None:
            raise _bad(f"{kind}: {_show(part.path)}: {fault}")


def _size_of(value: object) -> int:
    return len(cast("Sized", value)) if isinstance(value, list | dict | str) else 0


def _too_much(part: _Part) -> str | None:
    """Say what of a part cannot be kept to, or costs too much."""
    value, size = part.value, _size_of(part.value)
    if len(part.path) > _MAX_DEPTH:
        return f"it nests deeper than {_MAX_DEPTH} levels"
    if part.keyword == "$ref" and isinstance(value, str) and not value.startswith("#"):
        return f"{value[:100]!r} is somewhere else, and nothing is fetched"
    if part.keyword == "enum" and size > _MAX_CHOICES:
        return f"it has more than {_MAX_CHOICES} values"
    if part.keyword == "properties" and size > _MAX_PROPERTIES:
        return f"it has more than {_MAX_PROPERTIES} properties"
    if part.keyword == "const" and isinstance(value, list | dict) and len(msgspec.json.encode(value)) > _MAX_OWN_CHARS:
        return f"it has more than {_MAX_OWN_CHARS} characters as JSON"
    is_literal = part.place == "values" or part.keyword == "pattern"
    if (is_literal and isinstance(value, str) and size > _MAX_LITERAL) or len(
        part.path[-1:] and part.path[-1]
    ) > _MAX_LITERAL:
        return f"it has more than {_MAX_LITERAL} characters"
    return None


def _too_wide(part: _Part, root: object) -> str | None:
    """Say so where more properties may come next than can be kept track of: an answer would fail in its middle."""
    value = part.value if part.keyword in ("anyOf", "oneOf") else None
    choices = cast("list[object]", value) if isinstance(value, list) else []
    count = sum(_left_out(one, root) for one in choices)
    if count <= _MAX_LEFT_OUT:
        return None
    return f"its alternatives have {count} properties that may be left out, more than {_MAX_LEFT_OUT}"


def _left_out(given: object, root: object) -> int:
    """Count the properties of an object, or of what it refers to, that an answer need not have."""
    schema = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    if isinstance(ref := schema.get("$ref"), str):
        found = root
        for name in ref.removeprefix("#").split("/")[1:]:
            step = name.replace("~1", "/").replace("~0", "~")
            found = cast("dict[str, object]", found).get(step) if isinstance(found, dict) else None
        schema = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    return max(0, _size_of(schema.get("properties")) - _size_of(schema.get("required")))


def _walk(schema: object) -> Iterator[_Part]:
    """Go through all of a schema, outer parts first; stops going down one level below the deepest that is allowed."""
    waiting = [_Part((), schema, "", "schema")]
    while waiting:
        part = waiting.pop()
        yield part
        if len(part.path) > _MAX_DEPTH:
            continue
        if isinstance(part.value, dict):
            inner = cast("dict[str, object]", part.value)
            waiting += [_inside(part, name, value) for name, value in inner.items()]
        elif isinstance(part.value, list):
            values = cast("list[object]", part.value)
            waiting += [_Part((*part.path, str(n)), value, "", part.place) for n, value in enumerate(values)]


def _inside(part: _Part, name: str, value: object) -> _Part:
    """Say what the value of a name is: only in a schema a name is a keyword, and what is data holds no schema."""
    path = (*part.path, name)
    if part.place == "names":
        return _Part(path, value, "", "schema")
    if part.place != "schema":
        return _Part(path, value, "", part.place)
    place: _In = "names" if name in _NAMES else "values" if name in _VALUES else "notes" if name in _NOTES else "schema"
    return _Part(path, value, name, place)


def _place_of(fault: str, schema: object) -> str:
    """Name where a keyword stands that a fault is about: llguidance says which, or its value, and not where."""
    for name in (*_QUOTED.findall(fault), fault.rsplit(": ", maxsplit=1)[-1]):
        for part in _walk(schema):
            if part.keyword and name in (part.keyword, part.value):
                return f": {_show(part.path)}"
    return ""


def _show(path: tuple[str, ...]) -> str:
    """Write a path as a JSON pointer, the middle of a long one left out."""
    words = ["", *(part.replace("~", "~0").replace("/", "~1") for part in path)]
    shown = "/".join(words)
    return shown if len(shown) <= 200 else f"{shown[:100]}…{shown[-90:]}"


def _bad(text: str) -> RequestError:
    return request_error(ErrorKind.BAD_REQUEST, f"grammar: {text}")
