"""Reads the calls that stand in a piece of markup, in whichever of its forms a family of models writes them. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple, cast

import msgspec

_OUTSIDE: Final = re.compile(r'["{}\[\]]')
_IN_STRING: Final = re.compile(r'["\\]')
_NAMES: Final = ("name", "function")
_ARGUMENTS: Final = ("arguments", "parameters")
_ARG: Final = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_FUNCTION: Final = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER: Final = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED: Final = re.compile(
    r"\s*([A-Za-z0-9_.-]+)\s*(?:\[CALL_ID\]\s*[A-Za-z0-9]*\s*)?(?:\[ARGS\])?\s*(\{.*)", re.DOTALL
)
_BROKEN: Final = re.compile(
    r'"(?:name|function)"\s*:\s*"((?:[^"\\]|\\.)+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(.*)', re.DOTALL
)
"""A call that was cut off: its name, and what there is of its arguments."""


class FoundCall(NamedTuple):
    """A call as a model wrote it."""

    name: str
    arguments: str


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


def calls_in(body: str) -> list[FoundCall]:
    """Return the calls of one piece of markup, their tags taken off; none if it is no call."""
    body = body.strip()
    if body.startswith(("{", "[")):
        return _of_json(body) or _of_broken(body)
    if function := _FUNCTION.search(body):
        return [_of_pairs(function[1], _PARAMETER.findall(function[2]))]
    if named := _NAMED.fullmatch(body):
        return [FoundCall(named[1], named[2].strip())]
    name = body.partition("<arg_key>")[0].strip()
    if name and re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        return [_of_pairs(name, _ARG.findall(body))]
    return []


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
            return [call for one in _elements(text) for call in _of_json(one)]
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
        return [bytes(one).decode() for one in msgspec.json.decode(text, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, RecursionError):
        return []


def _of_object(text: str) -> FoundCall | None:
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        name = next((msgspec.json.decode(raw[key]) for key in _NAMES if key in raw), None)
        if isinstance(name, dict):  # {"function": {"name": …}}
            return _of_object(bytes(raw["function"]).decode())
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
    return [FoundCall(broken[1], broken[2].rstrip())] if broken else []


def _of_pairs(name: str, pairs: list[tuple[str, str]]) -> FoundCall:
    """Make JSON of arguments that are told one by one: what is JSON is taken as that, and the rest is text."""
    return FoundCall(name.strip(), json.dumps({key.strip(): _value(value) for key, value in pairs}, ensure_ascii=False))


def _value(text: str) -> object:
    try:
        return cast("object", msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError):
        return text
