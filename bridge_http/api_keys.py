"""Reads the keys of HTTP callers as operators write them: `tenant:key`, in a list or one a line in a file.

Keys that no request could ever match are refused at the start.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ..protocol.errors import ConfigurationError
from ..protocol.own_files import read_text, refuse_readable
from ..protocol.settings import unquoted

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""No header may hold them."""


def are_foreign_keys(text: str) -> bool:
    """Return whether API_KEYS names no tenant at all: another product's. A list with one mistake is an error."""
    return not any(all(_split(entry)) for entry in unquoted(text).split(","))


def check_keys(entries: Sequence[str]) -> None:
    """Refuse entries that no request could match. Raises ValueError; it repeats no key, since keys are secret."""
    for entry in entries:
        tenant, key = _split(entry)
        if not (tenant and key):
            hint = "" if ":" in entry else " (a key with a comma in it goes into --api-keys-file)"
            raise ValueError(f"expected each entry of api_keys to be tenant:key{hint}")
        if {tenant[0], key[-1]} & {"'", '"'}:
            raise ValueError("expected no quotes around tenant:key; one of a pair is missing")
        if _CONTROL.search(tenant) or _CONTROL.search(key):
            raise ValueError(f"expected no control characters in the key of {tenant!r}: no header can carry them")
    tenants_of(entries)


def read_keys(path: Path) -> list[str]:
    """Return a file's entries, one a line. Raises ConfigurationError naming the file, and the line but not the key."""
    try:
        refuse_readable(path)
        lines = [unquoted(line) for line in read_text(path).splitlines()]
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    entries = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    if not entries:
        raise ConfigurationError(f"{path} holds no key; write one tenant:key a line")
    for number, line in entries:
        try:
            check_keys([line])
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from None
    return [line for _, line in entries]


def tenants_of(entries: Iterable[str]) -> dict[bytes, str]:
    """Map each key as clients put it into a header to its tenant: in UTF-8, and in ISO-8859-1 if that has its letters.

    Bytes that Python could not read count as what they are. Raises ValueError where two tenants meet.
    """
    tenants: dict[bytes, str] = {}
    for tenant, key in map(_split, entries):
        for spelling in _spellings(key):
            other = tenants.setdefault(spelling, tenant)
            if other != tenant:
                text = f"expected each key of api_keys once: one is given twice, to {other!r} and to {tenant!r}"
                raise ValueError(text)
    return tenants


def _spellings(key: str) -> set[bytes]:
    raw = key.encode("utf-8", "surrogateescape")
    try:
        text = raw.decode()
    except UnicodeDecodeError:  # from an environment in ISO-8859-1
        return {raw, raw.decode("latin-1").encode()}
    with contextlib.suppress(UnicodeEncodeError):
        return {raw, text.encode("latin-1")}
    return {raw}


def _split(entry: str) -> tuple[str, str]:
    tenant, _, key = entry.partition(":")
    return unquoted(tenant), unquoted(key)
