"""What is wrong with a value that does not fit its struct: the place, and a sentence that says what is meant there.

msgspec checks every body, and is fast; its sentences name Python's types and its own paths. Callers are told in ours
instead, the same on /infer, on the OpenAI paths and in the library: once msgspec has refused a value, the first fault
in it is looked for here. Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, Final, Literal, cast

from msgspec import inspect as t

Word = Literal["missing", "unknown", "type", "range", "value"]
_MOST_SHOWN: Final = 40
"""Characters of a stranger's value that are repeated to them, and end in our log."""
_MOST_NAME: Final = 100
_MOST_WALKED: Final = 1 << 15
"""Entries of one list that are looked at: some 30 ms, in which nobody else is served. A prompt of more token ids with
something else behind them is refused without a place."""
_JSON_TYPES: Final[dict[type[t.Type], type]] = {
    t.NoneType: type(None),
    t.BoolType: bool,
    t.IntType: int,
    t.FloatType: float,
    t.StrType: str,
    t.BytesType: bytes,
    t.ListType: list,
    t.DictType: dict,
    t.StructType: dict,
}
_PLAINLY: Final[dict[type[t.Type], str]] = {
    t.NoneType: "null",
    t.BoolType: "true or false",
    t.BytesType: "bytes",
    t.DictType: "an object",
    t.StructType: "an object",
}
_ONE: Final = {"entries": "entry", "characters": "character"}
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


def find_fault(value: object, schema: type) -> Fault:
    """Say what is wrong with a value that msgspec has refused for this schema."""
    found = next(_faults(value, _type_of(schema), ""), None)
    return found or Fault(path="", text="something in the body is not what is meant there", word="value")


def soften(value: object, schema: type) -> object:
    """Return the value with floats such as 5.0 as integers wherever the schema has integers alone."""
    return _soften(value, _type_of(schema))


@cache
def _type_of(schema: type) -> t.Type:
    return t.type_info(schema)


# --- looking for it --------------------------------------------------------------------------------------------------


def _faults(value: object, kind: t.Type, path: str) -> Iterator[Fault]:
    """Yield what is wrong, in the order of the document."""
    branch = _branch(value, kind)
    if branch is None:
        yield _meant(value, kind, path, _word_for(value, kind))
    elif isinstance(branch, t.StructType):
        yield from _of_struct(cast("dict[object, object]", value), branch, path)
    elif isinstance(branch, t.ListType):
        yield from _of_list(cast("list[object]", value), branch, path)
    elif isinstance(branch, t.DictType):
        yield from _of_map(cast("dict[object, object]", value), branch, path)
    elif not _is_within(value, branch):
        yield _meant(value, kind, path, "range")


def _of_struct(value: dict[object, object], struct: t.StructType, path: str) -> Iterator[Fault]:
    known: dict[object, t.Field] = {field.encode_name: field for field in struct.fields}
    if struct.tag_field is not None and value.get(struct.tag_field, struct.tag) != struct.tag:
        text = f"{show(struct.tag)} is meant, not {show(value[struct.tag_field])}"
        yield Fault(path=_join(path, struct.tag_field), text=text, word="value")
    for name, one in value.items():
        place = _join(path, str(name)[:_MOST_NAME])
        if name in known:
            yield from _faults(one, known[name].type, place)
        elif struct.forbid_unknown_fields and name != struct.tag_field:
            yield Fault(path=place, text=f"unknown field; there are {', '.join(map(str, known))}", word="unknown")
    for field in struct.fields:
        if field.required and field.encode_name not in value:
            yield Fault(path=_join(path, field.encode_name), text="this field is required", word="missing")


def _of_list(value: list[object], kind: t.ListType, path: str) -> Iterator[Fault]:
    if not _fits(len(value), kind.min_length, kind.max_length):
        yield Fault(path=path, text=f"{_entries(kind)} meant, not {len(value)}", word="range")
    for index, one in enumerate(islice(value, _MOST_WALKED)):
        yield from _faults(one, kind.item_type, f"{path}[{index}]")


def _of_map(value: dict[object, object], kind: t.DictType, path: str) -> Iterator[Fault]:
    if not _fits(len(value), kind.min_length, kind.max_length):
        yield Fault(path=path, text=f"{_entries(kind)} meant, not {len(value)}", word="range")
    for key, one in value.items():
        for fault in _faults(key, kind.key_type, path):
            yield Fault(path=path, text=f"as a name in it, {fault.text}", word=fault.word)
        yield from _faults(one, kind.value_type, _join(path, str(key)[:_MOST_NAME]))


def _branch(value: object, kind: t.Type) -> t.Type | None:
    """Return the one type of a union that a value is of, whatever its bounds; None if it is of none."""
    if isinstance(kind, t.UnionType):
        return next((found for one in kind.types if (found := _branch(value, one)) is not None), None)
    return kind if _is_of(value, kind) else None


def _is_of(value: object, kind: t.Type) -> bool:
    if isinstance(kind, t.LiteralType):
        return isinstance(value, str) and value in kind.values
    if isinstance(kind, t.AnyType):
        return True
    return _JSON_TYPES.get(type(kind), object) in _types_of(value)


_KINDS: Final[tuple[type[Any], ...]] = (str, float, list, dict, bytes)


def _types_of(value: object) -> tuple[type[Any], ...]:
    """Return what a value may stand for: whole numbers are numbers too, true is none, and a tuple is a list."""
    if isinstance(value, bool):
        return (bool,)
    if isinstance(value, int):
        return (int, float)
    if isinstance(value, tuple | set | frozenset):
        return (list,)
    for kind in _KINDS:
        if isinstance(value, kind):
            return (kind,)
    return (type(value),)


def _word_for(value: object, kind: t.Type) -> Word:
    """Say what kind of mistake a value of none of the types is."""
    kinds = kind.types if isinstance(kind, t.UnionType) else (kind,)
    if isinstance(value, str) and any(isinstance(one, t.LiteralType) for one in kinds):
        return "value"
    is_too_large = isinstance(value, float) and not math.isfinite(value)
    return "range" if is_too_large and any(isinstance(one, t.IntType) for one in kinds) else "type"


def _is_within(value: object, kind: t.Type) -> bool:
    if isinstance(kind, t.IntType | t.FloatType):
        number = cast("float", value)
        return (
            (isinstance(number, int) or math.isfinite(number))
            and (kind.ge is None or number >= kind.ge)
            and (kind.gt is None or number > kind.gt)
            and (kind.le is None or number <= kind.le)
            and (kind.lt is None or number < kind.lt)
        )
    if isinstance(kind, t.StrType):
        text = cast("str", value)
        is_formed = kind.pattern is None or re.search(kind.pattern, text) is not None
        return is_formed and _fits(len(text), kind.min_length, kind.max_length)
    return True


def _fits(length: int, least: int | None, most: int | None) -> bool:
    return (least is None or length >= least) and (most is None or length <= most)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# --- saying it -------------------------------------------------------------------------------------------------------


def _meant(value: object, kind: t.Type, path: str, word: Word) -> Fault:
    return Fault(path=path, text=f"{describe(kind)} is meant, not {show(value)}", word=word)


def describe(kind: t.Type) -> str:
    """Put a type into words: what a caller may send."""
    match kind:
        case t.UnionType():
            return " or ".join(describe(one) for one in sorted(kind.types, key=_is_null))
        case t.IntType():
            return f"a whole number{_bounds(kind)}"
        case t.FloatType():
            return f"a number{_bounds(kind)}"
        case t.StrType():
            form = f" of the form {kind.pattern}" if kind.pattern else ""
            return f"a text{_length(kind, 'characters')}{form}"
        case t.LiteralType():
            return " or ".join(json.dumps(one) for one in kind.values)
        case t.ListType():
            return f"a list{_length(kind, 'entries')} (each {describe(kind.item_type)})"
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


def _is_null(kind: t.Type) -> bool:
    return isinstance(kind, t.NoneType)


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


def _length(kind: t.StrType | t.ListType, what: str) -> str:
    if kind.min_length and kind.max_length:
        return f" of {kind.min_length} to {kind.max_length} {what}"
    if kind.min_length:
        return f" of at least {kind.min_length} {_ONE.get(what, what) if kind.min_length == 1 else what}"
    return f" of at most {kind.max_length} {what}" if kind.max_length else ""


def _entries(kind: t.ListType | t.DictType) -> str:
    if kind.min_length and kind.max_length:
        return f"{kind.min_length} to {kind.max_length} entries are"
    if kind.min_length:
        return f"at least {kind.min_length} entr{'y is' if kind.min_length == 1 else 'ies are'}"
    return f"at most {kind.max_length} entries are"


# --- integers written as floats --------------------------------------------------------------------------------------


def _soften(value: Any, kind: t.Type) -> object:  # noqa: ANN401 - whatever a client sent
    branch = _branch(value, kind)
    if isinstance(value, float):
        is_whole = value.is_integer() and branch is None
        return int(value) if is_whole and _branch(0, kind) is not None else value
    match branch:
        case t.StructType():
            kinds = {field.encode_name: field.type for field in branch.fields}
            return {name: _soften(one, kinds[name]) if name in kinds else one for name, one in value.items()}
        case t.ListType() if len(value) <= _MOST_WALKED:
            return [_soften(one, branch.item_type) for one in value]
        case t.DictType():
            return {name: _soften(one, branch.value_type) for name, one in value.items()}
        case _:
            return value
