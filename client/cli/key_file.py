"""Edits the file of API keys: lines are added and words on them changed; comments, order and other lines stay.

What is written is whole or not there at all, for its owner alone, and two who write at once wait for one another. The
form of a line is read by `protocol/api_keys.py`, as the bridge does.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ...protocol.api_keys import (
    HASH,
    ApiKey,
    check_keys,
    digest_of,
    moment,
    read_entry,
    read_key_file,
    read_ring,
)
from ...protocol.errors import ConfigurationError
from ...protocol.file_edits import alone, replace_text
from ...protocol.own_files import read_text, refuse_readable
from ...protocol.settings import unquoted

PREFIX: Final = "zmqrt-"
"""So that people and scanners of repositories know such a key when they see one."""
_RANDOM_BYTES: Final = 32
_HEAD: Final = (
    "# Keys of HTTP callers, one a line; `zmqrt keys http` edits it. docs/tenants.md says what may stand here.\n"
)
Edit = Callable[[str], str]


def new_key() -> str:
    """Make a key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def line_of(tenant: str, key: str, words: Mapping[str, str]) -> str:
    """Write the line of a new key, which holds its hash alone. Raises ConfigurationError where it would not be read."""
    line = f"{tenant}:{HASH}{digest_of(key.encode()).hex()}{_written(words)}"
    try:
        read = read_entry(line)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    given = {name: value for name, value in words.items() if value}
    if (read.tenant, read.digest, read.words) != (tenant, digest_of(key.encode()), given) or tenant.startswith("#"):
        text = "expected a tenant without colon, quotes and the # of a comment, and words without spaces"
        raise ConfigurationError(f"{text}, not {tenant!r}")
    return line


def with_line(text: str, line: str) -> str:
    """Add a line at the end."""
    gap = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{gap}{line}\n"


def with_words(text: str, digest: bytes, words: Mapping[str, str]) -> str:
    """Set words on the line of a key; a key that stands there as it is is hashed by that, for words follow a hash."""
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines):
        if (found := _entry_of(line, digest)) is not None:
            tenant, old = found
            lines[at] = f"{tenant}:{HASH}{digest.hex()}{_written({**old, **words})}\n"
    return "".join(lines)


def words_of(path: Path, digest: bytes) -> dict[str, str]:
    """Return the words that stand on the line of a key."""
    text = _read(path, make=False)
    found = next(filter(None, (_entry_of(line, digest) for line in text.splitlines())), None)
    return found[1] if found is not None else {}


def listed(path: Path) -> list[ApiKey]:
    """Return the keys of a file, each once. Raises ConfigurationError."""
    try:
        return list(dict.fromkeys(read_ring(read_key_file(path)).values()))
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def find(path: Path, wanted: str) -> ApiKey:
    """Find a key by its id, or by TENANT/NAME; one that is not revoked. Raises ConfigurationError."""
    keys = [key for key in listed(path) if wanted in (key.id, f"{key.tenant}/{key.name}")]
    alive = [key for key in keys if not key.revoked]
    if len(alive) == 1:
        return alive[0]
    if alive:
        ids = ", ".join(key.id for key in alive)
        raise ConfigurationError(f"{wanted} means {len(alive)} keys: {ids}; give the id of one")
    why = "is revoked already" if keys else "is not listed; `zmqrt keys http list` shows the ids"
    raise ConfigurationError(f"key {wanted} {why}")


def edit(path: Path, change: Edit, *, make: bool = False) -> None:
    """Replace a file by what `change` makes of it. Raises ConfigurationError; nothing is written then."""
    path = path.resolve()  # a link goes on pointing to the file
    with alone(path.parent):
        text = _read(path, make=make)
        changed = change(text)
        try:
            check_keys([line for line in map(unquoted, changed.splitlines()) if line and not line.startswith("#")])
        except ValueError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        replace_text(path, changed, mode=0o600)


def _read(path: Path, *, make: bool) -> str:
    try:
        refuse_readable(path)
        return read_text(path)
    except FileNotFoundError:
        if make:
            return _HEAD
        raise ConfigurationError(f"{path} is not there; `zmqrt keys http add` makes it") from None


def _entry_of(line: str, digest: bytes) -> tuple[str, dict[str, str]] | None:
    line = unquoted(line)
    if not line or line.startswith("#"):
        return None
    entry = read_entry(line)
    is_it = entry.digest == digest or digest in map(digest_of, entry.spellings)
    return (entry.tenant, dict(entry.words)) if is_it else None


def _written(words: Mapping[str, str]) -> str:
    return "".join(f" {name}={value}" for name, value in words.items() if value)


def now_written() -> str:
    """Write the time as the file has it."""
    return moment(time.time())
