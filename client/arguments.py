"""Checks arguments in the thread of the caller, and names the one that is wrong.

The I/O thread serves all callers, so nothing may reach it that cannot be sent.
"""

from __future__ import annotations

import math
from typing import Final

from ..protocol.errors import ErrorKind, RequestError, request_error
from ..protocol.names import HALF, is_unicode

_MOST_SHOWN: Final = 80


def text(name: str, value: object, *, most: int) -> str:
    """Check a name of something. Raises RequestError (400) that names the argument."""
    if not isinstance(value, str):
        raise bad(name, f"expected text, got {kind_of(value)}")
    if not value:
        raise bad(name, "it is empty")
    if len(value) > most:
        raise bad(name, f"it has {len(value)} characters, and at most {most} are possible")
    if not is_unicode(value):
        raise bad(name, f"{shown(value)}: {HALF}")
    return value


def wait(name: str, value: object) -> None:
    """Check how long somebody wants to wait; None = for ever."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad(name, f"expected seconds, got {kind_of(value)}")
    if math.isnan(value):
        raise bad(name, "expected seconds, got NaN")


def count(name: str, value: object) -> None:
    """Check how many of something somebody wants; None = all of them."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise bad(name, f"expected a whole number from 1, got {shown(value)}")


def shown(value: object) -> str:
    """Write a value into an error: all on one line, of ASCII, and not all of it."""
    words = ascii(value)
    return words if len(words) <= _MOST_SHOWN else f"{words[:_MOST_SHOWN]}..."


def kind_of(value: object) -> str:
    """Name what was given instead of what was wanted."""
    return "None" if value is None else type(value).__name__


def bad(name: str, words: str) -> RequestError:
    """Build the refusal."""
    return request_error(ErrorKind.BAD_REQUEST, f"{name}: {words}")
