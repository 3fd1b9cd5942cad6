"""Which names and which text may travel. What has been checked here is not refused on the wire.

A broker drops a READY with a bad name like any malformed message, so a node checks first. Text that UTF-8 cannot carry
has halves of surrogate pairs in it, as a cut emoji or a byte of a foreign file name leaves them; Python says nothing
until somebody packs it. Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .limits import MAX_CAPABILITY_CHARS, MAX_NAME_CHARS, MAX_SERVICE_CHARS
from .sanitize import printable

HALF: Final = "it holds half a character (a lone surrogate), which UTF-8 cannot carry"
_SERVICE: Final = re.compile(r"[A-Za-z0-9._:/-]+")


def is_service(name: str) -> bool:
    """Say whether a broker takes this as the name of a model."""
    return 0 < len(name) <= MAX_SERVICE_CHARS and _SERVICE.fullmatch(name) is not None


def is_capability(name: str) -> bool:
    """Say whether a broker takes this as the name of something that a node can do."""
    return 0 < len(name) <= MAX_CAPABILITY_CHARS and _SERVICE.fullmatch(name) is not None


def check_service(name: str | None) -> None:
    """Refuse a model's name that no broker takes. Raises ValueError saying what it may hold."""
    if name is None or is_service(name):
        return
    raise ValueError(f"expected 1 to {MAX_SERVICE_CHARS} of the letters A-Z a-z 0-9 . _ : / - (and no space)")


def as_typed(name: str) -> str:
    """Return a name as it was typed: in a locale without its letters Python hands over bytes, each as half a pair."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return name


def check_name(name: str | None) -> None:
    """Refuse the name of a node or broker that is too long, or that would break the line it is shown in."""
    if name is None or (0 < len(name) <= MAX_NAME_CHARS and name.strip() and printable(name) == name):
        return
    raise ValueError(f"expected 1 to {MAX_NAME_CHARS} letters, without line breaks and other control characters")


def is_unicode(words: str) -> bool:
    """Say whether UTF-8 can carry it."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def half_in(values: object, at: str = "") -> str | None:
    """Return where in a body there is half a character, such as `messages[0].content`; None if nowhere."""
    if isinstance(values, str):
        return None if is_unicode(values) else at
    found: Any = values
    if isinstance(values, dict):
        named = ((key if isinstance(key, str) else str(key), value) for key, value in found.items())
        places = ((f"{at}.{key}".lstrip("."), key, value) for key, value in named)
    elif isinstance(values, list | tuple):
        places = ((f"{at}[{index}]", "", value) for index, value in enumerate(found))
    else:
        return None
    for here, key, value in places:
        where = half_in(value, here) if is_unicode(key) else at or "a name"
        if where is not None:
            return where
    return None
