"""What a setting's text means: one `ValueType` for each type a settings class may use.

It reads text and TOML values alike and writes a value back as it would be typed. It knows no names and no sources.
"""

import math
import os.path
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..names import as_typed

Unit = Literal["s", "ms", "bytes"]

_TRUE: Final = {"true", "yes", "on", "1"}
FALSE: Final = {"false", "no", "off", "0"}
_MICROSECONDS: Final = {"us": 1, "ms": 1_000, "s": 10**6, "m": 60 * 10**6, "min": 60 * 10**6, "h": 3600 * 10**6}
_BYTES: Final = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_QUANTITY: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


@dataclass(frozen=True, kw_only=True)
class ValueType:
    """One type of setting: how to read it and how to write it."""

    expected: str
    """What a user should have written; completes "expected …"."""
    metavar: str
    """Stands for the value in `--help`."""
    parse: Callable[[object], object]
    """Takes text or a TOML value; raises ValueError or OverflowError."""
    show: Callable[[typing.Any], str] = str
    is_flag: bool = False
    """The flag alone says it."""
    is_list: bool = False
    """The flag may be repeated."""
    is_number: bool = False
    """It may have bounds."""


def unquoted(text: str) -> str:
    """Take off what stands around a value by accident: white space, a carriage return, and one pair of equal quotes.

    `docker --env-file` keeps quotes that a shell would take off, and files from Windows end their lines with more.
    """
    text = text.strip()
    quote = text[:1]
    is_quoted = len(text) >= 2 and quote in "'\"" and text[-1] == quote and quote not in text[1:-1]
    return text[1:-1].strip() if is_quoted else text


def _bool(raw: object) -> bool:
    word = str(raw).strip().lower() if isinstance(raw, str | bool) else ""
    if word not in _TRUE | FALSE:
        raise ValueError
    return word in _TRUE


def _int(raw: object) -> int:
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise ValueError  # noqa: TRY004 - one exception for every value that does not fit
    return int(raw)


def _float(raw: object) -> float:
    number = float(raw) if isinstance(raw, str | int | float) and not isinstance(raw, bool) else math.nan
    if not math.isfinite(number):
        raise ValueError
    return number


def _string(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError  # noqa: TRY004 - as above
    return raw


def _text(raw: object) -> str:
    text = as_typed(_string(raw))
    text.encode()  # of bytes that are no UTF-8 Python makes halves of characters: a ValueError, too
    return text


def _path(raw: object) -> Path:
    text = _string(raw)  # a path may hold any byte but one
    if not text or "\0" in text:
        raise ValueError
    return Path(os.path.expanduser(text))  # noqa: PTH111 - leaves ~nobody alone where Path.expanduser raises


def _list(raw: object) -> tuple[str, ...]:
    if isinstance(raw, Sequence) and not isinstance(raw, str):
        return tuple(part for item in typing.cast("Sequence[object]", raw) for part in _list(_text(item)))
    parts = (unquoted(part) for part in unquoted(_text(raw)).split(","))
    return tuple(filter(None, parts))


def _quantity(raw: object, units: Mapping[str, int], unit: str) -> float:
    """Read `10s` or a bare number, which counts in the field's own unit; the result is in that unit too."""
    if not isinstance(raw, str):
        return _float(raw)
    match = _QUANTITY.fullmatch(raw.lower())
    if match is None or (match[2] and match[2] not in units):
        raise ValueError
    return float(match[1]) * units[match[2] or unit] / units[unit]


def _whole(number: float) -> int:
    if number % 1:
        raise ValueError
    return int(number)


def _show_number(number: float) -> str:
    """Write it without exponent or trailing zeros, so that it can be typed back."""
    return f"{number:.9f}".rstrip("0").rstrip(".") if number % 1 else f"{number:.0f}"


def _show_seconds(seconds: float) -> str:
    return f"{_show_number(seconds * 1000)}ms" if 0 < seconds < 1 else f"{_show_number(seconds)}s"


def _show_size(count: int) -> str:
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
    return next((f"{count // size}{name}" for size, name in units if count and count % size == 0), str(count))


def duration_type(unit: Literal["s", "ms"], *, is_whole: bool) -> ValueType:
    """Return the type of a duration kept in `unit`."""

    def parse(raw: object) -> float:
        number = _quantity(raw, _MICROSECONDS, unit)
        return _whole(number) if is_whole else number

    return ValueType(
        expected=f"a duration such as 10s, 250ms or 2m (a bare number counts {'seconds' if unit == 's' else unit})",
        metavar="DURATION",
        parse=parse,
        show=lambda value: _show_seconds(value * _MICROSECONDS[unit] / _MICROSECONDS["s"]),
        is_number=True,
    )


_SIZE: Final = ValueType(
    expected="a size such as 64MiB or 1GiB (a bare number counts bytes)",
    metavar="SIZE",
    parse=lambda raw: _whole(_quantity(raw, _BYTES, "b")),
    show=_show_size,
    is_number=True,
)
_PLAIN: Final[dict[object, ValueType]] = {
    bool: ValueType(
        expected="true or false", metavar="", parse=_bool, show=lambda value: str(value).lower(), is_flag=True
    ),
    int: ValueType(expected="a whole number", metavar="N", parse=_int, is_number=True),
    float: ValueType(expected="a number", metavar="NUMBER", parse=_float, show=_show_number, is_number=True),
    str: ValueType(expected="text", metavar="TEXT", parse=_text),
    Path: ValueType(expected="a path", metavar="PATH", parse=_path),
    tuple[str, ...]: ValueType(
        expected="a list of texts", metavar="TEXT[,TEXT]", parse=_list, show=",".join, is_list=True
    ),
}


def value_type_of(annotation: object, unit: Unit | None) -> ValueType:
    """Return the type that a field's annotation and unit ask for; `X | None` is read as X."""
    if isinstance(annotation, types.UnionType):
        (annotation,) = (part for part in typing.get_args(annotation) if part is not type(None))
    value_type = _PLAIN[annotation]
    if unit is None or not value_type.is_number:
        return value_type
    return _SIZE if unit == "bytes" else duration_type(unit, is_whole=annotation is int)
