"""Reads the calls that stand in a piece of markup, in whichever of its forms a family of models writes them. Pure."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple, cast

import msgspec

_OUTSIDE: Final = re.compile(r'["{}\[\]]')
_IN_STRING: Final = re.compile(r'["\\]')
_NAMES: Final = ("name", "function")
_ARGUMENTS: Final = ("arguments", "parameters")
_ARG: Final = re.compile(r"<arg_key>([^<]*+)</arg_key>\s*+<arg_value>", re.DOTALL)
_FUNCTION: Final = re.compile(r"<function=([^<>\n]++)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER: Final = re.compile(r"<parameter=([^<>\n]++)>\n?", re.DOTALL)
_NAMED: Final = re.compile(
    r"([A-Za-z0-9_.-]++)\s*+(?:\[CALL_ID\]\s*+[A-Za-z0-9]*+\s*+)?(?:\[ARGS\])?\s*+(\{.*)", re.DOTALL
)
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_CODE: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\.call(\(.*\))", re.DOTALL)
"""How Llama calls a tool that it was trained with."""
_MOST_CODE: Final = 64 << 10
DEEPSEEK: Final = "<\uff5ctool\u2581sep\uff5c>"
"""Stands between the name of a tool and its arguments."""
_BROKEN: Final = re.compile(
    r'"(?:name|function)"\s*:\s*"((?:[^"\\]|\\.)+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(.*)', re.DOTALL
)
"""A call that was cut off: its name, and what there is of its arguments."""


_array: Final = msgspec.json.Decoder(list[msgspec.Raw])
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class FoundCall(NamedTuple):
    """A call as a model wrote it; `is_whole`: it reads as one, to its end."""

    name: str
    arguments: str
    is_whole: bool = True


class JsonScan:
    """Finds where the object or array that stands in a text ends, as the text grows; strings may hold brackets."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._in_string = False
        self._end: int | None = None

    def end_in(self, text: str, start: int = 0) -> int | None:
        """Return where it ends; None if it does not yet. The text is the one from before, and more."""
        self._at = max(self._at, start)
        while self._end is None and (found := (_IN_STRING if self._in_string else _OUTSIDE).search(text, self._at)):
            char, at = found[0], found.end()
            if char == "\\":
                if at == len(text):
                    return None  # what it escapes is still to come
                at += 1
            elif char == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if char in "{[" else -1
            self._at = at
            if self._depth <= 0 and char in "}]":
                self._end = at
        self._at = len(text)
        return self._end


def calls_in(body: str, texts: Mapping[str, Collection[str]] | None = None) -> list[FoundCall]:
    """Return the calls of one piece of markup, their tags taken off; none if it is no call.

    `texts`: which arguments of each tool are texts, whatever they look like.
    """
    body = body.strip()
    if body.startswith(("{", "[")):
        return _of_json(body) or _of_broken(body)
    if function := _FUNCTION.search(body):
        given = function[2].strip()
        if given.startswith("{"):
            return [FoundCall(function[1].strip(), given)]
        pairs = [(key, value.removesuffix("\n")) for key, value in _pairs(given, _PARAMETER, "</parameter>")]
        return [_of_pairs(function[1], pairs, texts)]
    if DEEPSEEK in body:
        return _of_deepseek(body)
    if code := _CODE.fullmatch(body):
        return _of_code(code[1], code[2])
    if named := _NAMED.fullmatch(body):
        return [FoundCall(named[1], named[2].strip())]
    name = body.partition("<arg_key>")[0].strip()
    return [_of_pairs(name, _pairs(body, _ARG, "</arg_value>"), texts)] if _NAME.fullmatch(name) else []


def text_arguments(parameters: object) -> frozenset[str]:
    """Return which arguments are texts and nothing else, of the JSON schema of a tool."""
    schema = cast("dict[str, Any]", parameters) if isinstance(parameters, dict) else {}
    properties: Any = schema.get("properties")
    if not isinstance(properties, dict):
        return frozenset()
    return frozenset(name for name, one in cast("dict[str, Any]", properties).items() if _is_text(one))


def _is_text(schema: object) -> bool:
    if not isinstance(schema, dict):
        return False
    said = cast("dict[str, Any]", schema)
    if isinstance(said.get("type"), str):
        return bool(said["type"] == "string")
    values: object = said.get("enum")
    listed = cast("list[object]", values) if isinstance(values, list) else []
    return bool(listed) and all(isinstance(one, str) for one in listed)


def _of_json(body: str) -> list[FoundCall]:
    """Read one call, an array of them, or several behind one another."""
    found: list[FoundCall] = []
    at = 0
    while at < len(body):
        end = JsonScan().end_in(body, at)
        if end is None:
            break
        text = body[at:end].strip(" ;,\n")
        if text.startswith("["):
            return [call for one in _elements(text) if (call := _of_object(one)) is not None]
        one = _of_object(text)
        if one is None:
            break
        found.append(one)
        at = end
        while at < len(body) and body[at] in " ;,\n\t\r":
            at += 1
    else:
        return found
    rest = _of_broken(body[at:])
    return found + rest if found else []


def _elements(text: str) -> list[str]:
    try:
        return [bytes(one).decode() for one in _array.decode(text)]
    except (msgspec.DecodeError, RecursionError):
        return []


def _of_object(text: str, *, is_inner: bool = False) -> FoundCall | None:
    try:
        raw = _object.decode(text)
        name = next((msgspec.json.decode(raw[key]) for key in _NAMES if key in raw), None)
        if isinstance(name, dict) and "function" in raw and not is_inner:  # {"function": {"name": …}}
            return _of_object(bytes(raw["function"]).decode(), is_inner=True)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(name, str) or not name:
        return None
    given = next((bytes(raw[key]).decode() for key in _ARGUMENTS if key in raw), "{}").strip()
    if given.startswith('"'):  # JSON inside a string
        inner: Any = msgspec.json.decode(given)
        given = inner if isinstance(inner, str) and inner.lstrip().startswith("{") else given
    return FoundCall(name, "{}" if given == "null" else given)


def _of_broken(body: str) -> list[FoundCall]:
    broken = _BROKEN.search(body)
    return [FoundCall(broken[1], broken[2].rstrip(), is_whole=False)] if broken else []


def _of_deepseek(body: str) -> list[FoundCall]:
    """Read a name and its arguments; before version 3.1 what kind of tool it is, and arguments as a block of code."""
    name, _, given = body.partition(DEEPSEEK)
    if name.strip() == "function":
        name, _, given = given.partition("\n")
        given = given.strip().removeprefix("```json").removesuffix("```")
    return [FoundCall(name.strip(), given.strip() or "{}")] if _NAME.fullmatch(name.strip()) else []


def _of_code(name: str, arguments: str) -> list[FoundCall]:
    """Read a call in Python whose arguments are named values."""
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body if len(arguments) <= _MOST_CODE else None
        if not isinstance(call, ast.Call) or call.args:
            return []
        given = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
        return [FoundCall(name, json.dumps(given, ensure_ascii=False))]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return []


def _pairs(text: str, opener: re.Pattern[str], closer: str) -> list[tuple[str, str]]:
    """Return keys and values; each value ends at the first closer behind its opener, so nothing is looked at twice."""
    *closed, _ = text.split(closer)
    return [(found[1], one[found.end() :]) for one in closed if (found := opener.search(one))]


def _of_pairs(name: str, pairs: list[tuple[str, str]], texts: Mapping[str, Collection[str]] | None = None) -> FoundCall:
    """Make JSON of arguments that are told one by one: what is JSON is taken as that, unless it is to be a text."""
    name = name.strip()
    known = (texts or {}).get(name, ())
    given = {key.strip(): value if key.strip() in known else _value(value) for key, value in pairs}
    return FoundCall(name, json.dumps(given, ensure_ascii=False))


def _value(text: str) -> object:
    try:
        return cast("object", msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError):
        return text
