"""What may be given to a chat template: JSON values under names that it can read, so many and so deep.

A template is a program that came with its model; what it makes of them is its own affair, and bounded elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from .faults import show
from .limits import MAX_TEMPLATE_DEPTH, MAX_TEMPLATE_NAMES, MAX_TEMPLATE_VALUES

_MOST_NAME: Final = 64
_ELSEWHERE: Final = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"}
    | {"raise_exception", "strftime_now"}
)
"""What templates get from elsewhere, and what renders them in other programs."""
_SMALL_ENOUGH: Final = range(-(2**63), 2**64)
"""What MessagePack can carry."""


def kwargs_fault(kwargs: Mapping[str, object]) -> str:
    """Say what is wrong with them; "" if nothing is."""
    if len(kwargs) > MAX_TEMPLATE_NAMES:
        return f"at most {MAX_TEMPLATE_NAMES} names are meant, not {len(kwargs)}"
    for name in kwargs:
        if not name.isidentifier() or len(name) > _MOST_NAME:
            return f"{show(name)} is no name that a template can read"
        if name in _ELSEWHERE:
            return f"{name} is not said here"
    return _values_fault(list(kwargs.values()))


def _values_fault(values: list[object]) -> str:
    """Look at all values, level by level."""
    seen = 0
    for _ in range(MAX_TEMPLATE_DEPTH):
        seen += len(values)
        if not values or seen > MAX_TEMPLATE_VALUES:
            break
        faults = [fault for fault in map(_value_fault, values) if fault]
        if faults:
            return faults[0]
        values = [inner for value in values for inner in _within(value)]
    return f"at most {MAX_TEMPLATE_VALUES} values, {MAX_TEMPLATE_DEPTH} deep, are meant" if values else ""


def _value_fault(value: object) -> str:
    match value:
        case None | bool() | float() | str() | list():
            return ""
        case int():
            return "" if value in _SMALL_ENOUGH else "a number is too large"
        case dict():
            names = cast("dict[object, object]", value)
            return "" if all(isinstance(name, str) for name in names) else "the names in an object are texts"
        case _:
            return f"JSON values are meant, not {show(value)}"


def _within(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []
