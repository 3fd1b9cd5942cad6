"""Which names may travel: of models, of nodes and brokers. What has been checked here is not refused on the wire.

A broker drops a READY with a bad name like any malformed message, so whoever sends one checks first.
"""

from __future__ import annotations

import re
from typing import Final

from .limits import MAX_NAME_CHARS, MAX_SERVICE_CHARS
from .sanitize import printable

_SERVICE: Final = re.compile(r"[A-Za-z0-9._:/-]+")


def is_service(name: str) -> bool:
    """Say whether a broker takes this as the name of a model."""
    return 0 < len(name) <= MAX_SERVICE_CHARS and _SERVICE.fullmatch(name) is not None


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
