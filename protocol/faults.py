"""What is wrong with a value that does not fit its struct: the place, and a sentence that says what is meant there.

msgspec checks every body, and is fast; its sentences name Python's types and its own paths. Callers are told in ours
instead, the same on /infer, on the OpenAI paths and in the library. The place is msgspec's: the first fault in the
order of the document. The words come from the schema and from the value found there. Pure.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, cast

from msgspec import inspect as t

Word = Literal["missing", "unknown", "type", "range", "value"]
_MOST_SHOWN: Final = 40
"""Characters of a stranger's value that are repeated to them, and end in our log."""
_MOST_NAME: Final = 100
_MOST_WALKED: Final = 1 << 15
"""Entries of a list that are looked at for whole numbers written as floats: some 30 ms, in which nobody else is
served."""
_PLACE: Final = re.compile(r" - at (`key` in )?`\$(\S*)`\Z")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_MISSING: Final = re.compile(r"Object missing required field `(.*?)`")
_LOST: Final = (LookupError, TypeError, ValueError, AttributeError, StopIteration)
_ANY_KEY: Final = "..."
"""msgspec does not say under which key of a map a wrong value stands."""
_TYPES: Final[dict[type[t.Type], tuple[type, ...]]] = {
    t.NoneType: (type(None),),
    t.BoolType: (bool,),
    t.IntType: (int,),
    t.FloatType: (int, float),
    t.StrType: (str,),
    t.LiteralType: (str,),
    t.BytesType: (bytes,),
    t.ListType: (list, tuple, set, frozenset),
    t.DictType: (dict,),
    t.StructType: (dict,),
    t.AnyType: (object,),
}
_PLAINLY: Final[dict[type[t.Type], str]] = {
    t.NoneType: "null",
    t.BoolType: "true or false",
    t.BytesType: "bytes",
    t.DictType: "an object",
    t.StructType: "an object",
}
_PLURALS: Final = {"entry": "entries", "character": "characters"}
_LARGEST: Final = 2**31 - 1
"""Bounds from here on are no rule that anybody has to know of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """The first thing that is wrong. `path` leads to it ("messages[0].role"); "" is the whole."""

    path: str
    text: str
    word: Word

    def __str__(self) -> str:
        """Give the sentence with its place."""
        return f"{self.path}: {self.text}" if self.path else self.text


def find_fault(refusal: Exception, value: object, schema: type) -> Fault:
    """Say what msgspec has refused a value for.

    Args:
        refusal: What `msgspec.convert(value, schema)` raised.
    """
    sentence = str(refusal)
    place = _PLACE.search(sentence)
    try:
        path, found, kind = _walk(place[2] if place else "", value, _type_of(schema))
        reason = sentence[: place.start()] if place else sentence
        return _describe_fault(reason, path, found, kind, is_key=place is not None and place[1] is not None)
    except _LOST:  # a sentence of msgspec that we do not know
        return Fault(path="", text="something in the body is not what is meant there", word="value")


def _describe_fault(reason: str, path: str, value: object, kind: t.Type, *, is_key: bool) -> Fault:
    if missing := _MISSING.match(reason):
        return Fault(path=_join(path, missing[1]), text="this field is required", word="missing")
    branch = _branch(value, kind)
    if reason.startswith("Object contains unknown field") or (is_key and isinstance(branch, t.StructType)):
        known = [field.encode_name for field in _struct(kind, "").fields]
        tag = _struct(kind, "").tag_field
        name = next(str(name) for name in cast("dict[object, object]", value) if name not in (*known, tag))
        text = f"unknown field; there are {', '.join(known)}"
        return Fault(path=_join(path, name[:_MOST_NAME]), text=text, word="unknown")
    if is_key:
        keys = cast("t.DictType", branch).key_type
        key = next(key for key in cast("dict[object, object]", value) if not _is_within(key, keys))
        return Fault(path=path, text=f"as a name in it, {describe(keys)} is meant, not {show(key)}", word="type")
    if " of length " in reason and isinstance(branch, t.ListType | t.DictType):
        count = _count(branch, "entry")
        text = f"{count} {'is' if count.endswith('entry') else 'are'} meant, not {len(cast('list[object]', value))}"
        return Fault(path=path, text=text, word="range")
    return Fault(path=path, text=f"{describe(kind)} is meant, not {show(value)}", word=_word(reason, value, kind))


def _word(reason: str, value: object, kind: t.Type) -> Word:
    if reason.startswith("Invalid "):
        return "value"
    kinds = kind.types if isinstance(kind, t.UnionType) else (kind,)
    is_endless = (
        isinstance(value, float) and not math.isfinite(value) and any(isinstance(part, t.IntType) for part in kinds)
    )
    return "range" if _branch(value, kind) is not None or is_endless else "type"


# --- to the place ----------------------------------------------------------------------------------------------------


@cache
def _type_of(schema: type) -> t.Type:
    return t.type_info(schema)


def _walk(steps: str, value: Any, kind: t.Type) -> tuple[str, object, t.Type]:  # noqa: ANN401 - whatever a client sent
    """Follow a path of msgspec's; return it in our spelling, what stands there, and what is meant to stand there."""
    path = ""
    for name, index in _STEP.findall(steps):
        if name:
            struct = _struct(kind, name)
            kinds = {field.encode_name: field.type for field in struct.fields}
            path, kind = _join(path, name), kinds[name] if name in kinds else t.LiteralType((struct.tag,))
            value = value[name]
        elif index == _ANY_KEY:
            kind = cast("t.DictType", _branch(value, kind)).value_type
            key = next(key for key, entry in value.items() if not _is_within(entry, kind))
            path, value = _join(path, str(key)[:_MOST_NAME]), value[key]
        else:
            kind = cast("t.ListType", _branch(value, kind)).item_type
            path, value = f"{path}[{index}]", list(value)[int(index)]
    return path, value, kind


def _struct(kind: t.Type, field: str) -> t.StructType:
    """Return the struct of a union that has a field, or the first one."""
    kinds = kind.types if isinstance(kind, t.UnionType) else (kind,)
    structs = [struct for struct in kinds if isinstance(struct, t.StructType)]
    return next((struct for struct in structs if field in [known.encode_name for known in struct.fields]), structs[0])


def _branch(value: object, kind: t.Type) -> t.Type | None:
    """Return the one type of a union that a value is of, whatever its bounds; None if it is of none."""
    if isinstance(kind, t.UnionType):
        return next((branch for part in kind.types if (branch := _branch(value, part)) is not None), None)
    types = _TYPES.get(type(kind), (object,))
    is_number = isinstance(value, bool) and int in types  # to Python, true is one
    return kind if isinstance(value, types) and not is_number else None


def _is_within(value: object, kind: t.Type) -> bool:
    """Say whether an entry of a map fits; bounds of numbers are all that entries have."""
    branch = _branch(value, kind)
    if not isinstance(branch, t.IntType | t.FloatType):
        return branch is not None
    number = cast("float", value)
    least, most = (-math.inf if branch.ge is None else branch.ge), (math.inf if branch.le is None else branch.le)
    is_number = isinstance(number, int) or math.isfinite(number)  # asked of one beyond a double, it would raise
    return is_number and least <= number <= most


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- saying it -------------------------------------------------------------------------------------------------------


def describe(kind: t.Type) -> str:
    """Put a type into words: what a caller may send."""
    match kind:
        case t.UnionType():
            return " or ".join(map(describe, sorted(kind.types, key=lambda part: isinstance(part, t.NoneType))))
        case t.IntType():
            return f"a whole number{_bounds(kind)}"
        case t.FloatType():
            return f"a number{_bounds(kind)}"
        case t.StrType():
            form = f" of the form {kind.pattern}" if kind.pattern else ""
            return f"a text{_of(_count(kind, 'character'))}{form}"
        case t.LiteralType():
            return " or ".join(map(json.dumps, kind.values))
        case t.ListType():
            return f"a list{_of(_count(kind, 'entry'))} (each {describe(kind.item_type)})"
        case _:
            return _PLAINLY.get(type(kind), "something else")


def show(value: object) -> str:
    """Show a value in few characters, as its sender wrote it."""
    match value:
        case dict():
            return "an object"
        case list() | tuple() | set() | frozenset():
            return "a list"
        case bytes():
            return "bytes"
        case int() if abs(value) >= 2**63 and not isinstance(value, bool):
            return "a number beyond 64 bits"
        case float() if not math.isfinite(value):
            return "a number beyond all bounds"
        case str() if len(value) > _MOST_SHOWN:
            return f"{_quoted(value[:_MOST_SHOWN])}… ({len(value)} characters)"
        case _:
            return _quoted(value)


def _quoted(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # what JSON has no word for, from a program that uses the library
        return f"a {type(value).__name__}"


def _of(bounds: str) -> str:
    return f" of {bounds}" if bounds else ""


def _bounds(kind: t.IntType | t.FloatType) -> str:
    least, most = kind.ge, kind.le
    if most is not None and most >= _LARGEST:
        most = None
    if kind.gt is not None:
        above = f" above {_plain(kind.gt)}"
        return above if most is None else f"{above}, at most {_plain(most)}"
    if least is not None and abs(least) <= _LARGEST:
        return f" from {_plain(least)}" + ("" if most is None else f" to {_plain(most)}")
    return "" if most is None else f" of at most {_plain(most)}"


def _plain(number: float) -> str:
    return f"{number:g}"


def _count(kind: t.StrType | t.ListType | t.DictType, noun: str) -> str:
    """Put the bounds of a length into words; "" if there are none."""
    least, most = kind.min_length, kind.max_length
    if least and most:
        return f"{least} to {most} {_PLURALS[noun]}"
    if least:
        return f"at least {least} {noun if least == 1 else _PLURALS[noun]}"
    return f"at most {most} {_PLURALS[noun]}" if most else ""


# --- integers written as floats --------------------------------------------------------------------------------------


def soften(value: object, schema: type) -> object:
    """Return the value with floats such as 5.0 as integers wherever the schema has integers alone."""
    return _soften(value, _type_of(schema))


def _soften(value: Any, kind: t.Type) -> object:  # noqa: ANN401 - whatever a client sent
    branch = _branch(value, kind)
    if isinstance(value, float):
        is_whole = value.is_integer() and branch is None
        return int(value) if is_whole and _branch(0, kind) is not None else value
    match branch:
        case t.StructType():
            kinds = {field.encode_name: field.type for field in branch.fields}
            return {name: _soften(entry, kinds[name]) if name in kinds else entry for name, entry in value.items()}
        case t.ListType() if len(value) <= _MOST_WALKED:
            return [_soften(entry, branch.item_type) for entry in value]
        case t.DictType():
            return {name: _soften(entry, branch.value_type) for name, entry in value.items()}
        case _:
            return value
