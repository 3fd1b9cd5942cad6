"""What a setting's text means: one `ValueType` for each type a settings class may use.

It reads words and TOML values alike and writes a value back as it would be typed.
It knows no names and no sources.
"""

import math
import os.path
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..names import as_typed

Unit = Literal["s", "ms", "bytes"]

_TRUE: Final = {"true", "yes", "on", "1"}
FALSE: Final = {"false", "no", "off", "0"}
_TIME: Final = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "min": 60_000_000, "h": 3_600_000_000}
_SIZE: Final = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_QUOTES: Final = ("'", '"')
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


@dataclass(frozen=True, kw_only=True)
class ValueType:
    """One type of setting: how to read it and how to write it.

    Attributes:
        expected: What a user should have written; completes "expected …".
        metavar: Stands for the value in `--help`.
        parse: Takes text or a TOML value; raises ValueError.
        show: Writes a value the way it would be typed.
        is_flag: Whether the flag alone says it.
        is_list: Whether the flag may be repeated.
        is_number: Whether limits may be compared.
    """

    expected: str
    metavar: str
    parse: Callable[[object], object]
    show: Callable[[object], str] = str
    is_flag: bool = False
    is_list: bool = False
    is_number: bool = False


def unquoted(text: str) -> str:
    """Take off what stands around a value by accident: white space, a carriage return, and one pair of equal quotes.

    `docker --env-file` keeps quotes that a shell would take off, and files from Windows end their lines with more.
    """
    text = text.strip()
    quote = text[:1]
    is_quoted = len(text) >= 2 and quote in _QUOTES and text[-1] == quote and quote not in text[1:-1]
    return text[1:-1].strip() if is_quoted else text


def plain_number(number: float) -> str:
    """Write a number without exponent or trailing zeros, so that it can be typed back."""
    return f"{number:.9f}".rstrip("0").rstrip(".") if number % 1 else f"{number:.0f}"


def _parse_bool(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    word = raw.strip().lower() if isinstance(raw, str) else ""
    if word in _TRUE:
        return True
    if word in FALSE:
        return False
    raise ValueError


def _parse_int(raw: object) -> int:
    if isinstance(raw, str):
        return int(raw)
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    raise ValueError


def _parse_float(raw: object) -> float:
    number = float(raw) if isinstance(raw, (str, int, float)) and not isinstance(raw, bool) else math.nan
    if not math.isfinite(number):
        raise ValueError
    return number


def _parse_text(raw: object) -> str:
    text = as_typed(_parse_any(raw))
    text.encode()  # of bytes that are no UTF-8 Python makes halves of characters: a ValueError, too
    return text


def _parse_any(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError  # noqa: TRY004 - one exception for every value that does not fit
    return raw


def _parse_path(raw: object) -> Path:
    text = _parse_any(raw)  # a path may hold any byte but one
    if not text or "\0" in text:
        raise ValueError
    return Path(os.path.expanduser(text))  # noqa: PTH111 - leaves ~nobody alone where Path.expanduser raises


def _parse_list(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        parts = (unquoted(part) for part in unquoted(_parse_text(raw)).split(","))
        return tuple(part for part in parts if part)
    if not isinstance(raw, Sequence):
        raise ValueError  # noqa: TRY004 - as above
    pieces: list[str] = []
    for item in typing.cast("Sequence[object]", raw):
        pieces.extend(_parse_list(_parse_text(item)))
    return tuple(pieces)


def _show_list(value: object) -> str:
    return ",".join(map(str, typing.cast("Sequence[object]", value)))


def _show_bool(value: object) -> str:
    return "true" if value else "false"


def _show_float(value: object) -> str:
    return plain_number(_parse_float(value))


def _parse_quantity(raw: object, units: dict[str, int], unit: str) -> float:
    """Read `10s` or a bare number, which counts in the field's own unit; the result is in that unit too."""
    if not isinstance(raw, str):
        return _parse_float(raw)
    match = _QUANTITY.fullmatch(raw.lower())
    if match is None or (match[2] and match[2] not in units):
        raise ValueError
    return float(match[1]) * units[match[2] or unit] / units[unit]


def _show_time(value: object, unit: str) -> str:
    seconds = _parse_float(value) * _TIME[unit] / _TIME["s"]
    if seconds and seconds < 1:
        return f"{plain_number(seconds * 1000)}ms"
    return f"{plain_number(seconds)}s"


def _show_size(value: object) -> str:
    count = _parse_int(value)
    for name, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count and count % factor == 0:
            return f"{count // factor}{name}"
    return str(count)


def _whole(number: float) -> int:
    if number % 1:
        raise ValueError
    return int(number)


def duration_type(unit: Literal["s", "ms"], *, is_whole: bool) -> ValueType:
    """Return the type of a duration kept in `unit`."""

    def parse(raw: object) -> float:
        number = _parse_quantity(raw, _TIME, unit)
        return _whole(number) if is_whole else number

    return ValueType(
        expected=f"a duration such as 10s, 250ms or 2m (a bare number counts {'seconds' if unit == 's' else unit})",
        metavar="DURATION",
        parse=parse,
        show=lambda value: _show_time(value, unit),
        is_number=True,
    )


SIZE: Final = ValueType(
    expected="a size such as 64MiB or 1GiB (a bare number counts bytes)",
    metavar="SIZE",
    parse=lambda raw: _whole(_parse_quantity(raw, {**_SIZE, "bytes": 1}, "bytes")),
    show=_show_size,
    is_number=True,
)

PLAIN: Final[dict[object, ValueType]] = {
    bool: ValueType(expected="true or false", metavar="", parse=_parse_bool, show=_show_bool, is_flag=True),
    int: ValueType(expected="a whole number", metavar="N", parse=_parse_int, is_number=True),
    float: ValueType(expected="a number", metavar="NUMBER", parse=_parse_float, show=_show_float, is_number=True),
    str: ValueType(expected="text", metavar="TEXT", parse=_parse_text),
    Path: ValueType(expected="a path", metavar="PATH", parse=_parse_path),
    tuple[str, ...]: ValueType(
        expected="a list of texts", metavar="TEXT[,TEXT]", parse=_parse_list, show=_show_list, is_list=True
    ),
}


def value_type_of(annotation: object, unit: Unit | None) -> ValueType:
    """Return the type that a field's annotation and unit ask for; `X | None` is read as X."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        (annotation,) = (part for part in typing.get_args(annotation) if part is not type(None))
    if annotation is int or annotation is float:
        if unit == "bytes":
            return SIZE
        if unit is not None:
            return duration_type(unit, is_whole=annotation is int)
    return PLAIN[annotation]
