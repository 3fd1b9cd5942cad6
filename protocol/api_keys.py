"""The keys of HTTP callers as operators write them, and what each may do: one entry a line, in a file or a list.

    acme:SECRET                                          a key as it is
    acme:sha256$HEX name=ci models=tiny,llama-* rpm=60   its hash, and what goes for this key
    acme:* budget=5M                                     no key: what goes for all keys of a tenant together

A hash of one round is enough where the key is 32 random bytes: nobody can go through them all, so there is nothing
that a slow hash would slow down, and every request is looked up. Keys that people invent belong behind a slow one, and
so are not hashed here: `zmqrt keys http add` makes random ones.

Keys that no request could ever match are refused at the start. No error repeats a key.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

from .errors import ConfigurationError
from .own_files import read_text, refuse_readable
from .priority import CLASSES, PriorityClass, class_of
from .settings import unquoted

HASH: Final = "sha256$"
ALL_KEYS: Final = "*"
"""Stands for a key in the entry of a whole tenant."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""No header may hold them."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_COUNT: Final = re.compile(r"([1-9][0-9]{0,14})([kMG]?)")
_TIMES: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_LIMITS: Final = ("rpm", "tpm", "concurrency", "budget")
_WORDS: Final = ("name", "models", "priority", "metrics", *_LIMITS, "expires", "revoked")


class Limits(NamedTuple):
    """How much a key, or all keys of a tenant together, may ask for; None: as much as it likes.

    rpm, tpm: Requests and tokens in a minute. concurrency: Requests under way. budget: Tokens in a calendar month, UTC.
    """

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    budget: int | None = None


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key that is listed, and what goes for it.

    Attributes:
        digest: SHA-256 of the key, in one of the spellings in which headers may carry it.
        name: Whose it is within the tenant; keys that share a name share what is counted for it.
        models: Patterns of the models that it may ask; none = all.
        priority: The highest class of its requests, and theirs unless they ask for a lower one.
        sees_all_tenants: Whether /metrics tells it of other tenants than its own.
        tenant_limits: Those of all keys of its tenant together.
        expires: When it is no longer let in, in seconds since 1970.
        revoked: Since when it is not let in, in the words of the file.
    """

    tenant: str
    digest: bytes
    name: str = ""
    models: tuple[str, ...] = ()
    priority: PriorityClass = "default"
    sees_all_tenants: bool = False
    limits: Limits = NO_LIMITS
    tenant_limits: Limits = NO_LIMITS
    expires: float | None = None
    revoked: str = ""

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to count for it."""
        return self.limits is not NO_LIMITS or self.tenant_limits is not NO_LIMITS

    @property
    def id(self) -> str:
        """What people call it by: the beginning of its hash."""
        return id_of(self.digest)

    def may_ask(self, model: str) -> bool:
        """Whether it may ask a model."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)

    def why_not(self, now: float) -> str:
        """Say why it is not let in any more; "" while it is."""
        if self.revoked:
            return f"this key was revoked ({self.revoked})"
        if self.expires is not None and now >= self.expires:
            return f"this key expired at {moment(self.expires)}"
        return ""


class KeyEntry(NamedTuple):
    """One entry as it was read; `spellings` are the keys in bytes, none for a hash, and `digest` for a hash alone."""

    tenant: str
    spellings: frozenset[bytes]
    digest: bytes | None
    words: Mapping[str, str]

    @property
    def is_of_tenant(self) -> bool:
        """Whether it is about all keys of a tenant, and none itself."""
        return not self.spellings and self.digest is None


def digest_of(key: bytes) -> bytes:
    """Hash a key as it came over the wire."""
    return hashlib.sha256(key).digest()


def id_of(digest: bytes) -> str:
    """Return what people call a key by."""
    return digest.hex()[:8]


def moment(at: float) -> str:
    """Write a time as the file has it."""
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def are_foreign_keys(text: str) -> bool:
    """Return whether API_KEYS names no tenant at all: another product's. A list with one mistake is an error."""
    return not any(all(_split(entry)) for entry in unquoted(text).split(","))


def check_keys(entries: Sequence[str]) -> None:
    """Refuse entries that no request could match. Raises ValueError."""
    read_ring(entries)


def read_entry(entry: str) -> KeyEntry:
    """Read one entry. Raises ValueError."""
    tenant, key = _split(entry)
    if not (tenant and key):
        hint = "" if ":" in entry else " (a key with a comma in it goes into --api-keys-file)"
        raise ValueError(f"expected each entry of api_keys to be tenant:key{hint}")
    if {tenant[0], key[-1]} & {"'", '"'}:
        raise ValueError("expected no quotes around tenant:key; one of a pair is missing")
    if _CONTROL.search(tenant) or _CONTROL.search(key):
        raise ValueError(f"expected no control characters in the key of {tenant!r}: no header can carry them")
    first, *rest = key.split()
    if key == ALL_KEYS:  # whoever takes the last limit off such a line means no key that anybody could guess
        raise ValueError(f"of {tenant!r}: expected a limit behind {ALL_KEYS}, such as budget=5M; it is no key")
    if first == ALL_KEYS:
        return KeyEntry(tenant, frozenset(), None, _words(tenant, rest, _LIMITS))
    if not first.lower().startswith(HASH):
        return KeyEntry(tenant, frozenset(_spellings(key)), None, {})
    digest = first.lower().removeprefix(HASH)
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"expected 64 hexadecimal digits after {HASH} in the key of {tenant!r}")
    return KeyEntry(tenant, frozenset(), bytes.fromhex(digest), _words(tenant, rest, _WORDS))


def read_ring(entries: Iterable[str]) -> dict[bytes, ApiKey]:
    """Map what is sent, hashed, to the key that it is: in UTF-8, and in ISO-8859-1 if that has its letters.

    Bytes that Python could not read count as what they are. Raises ValueError where two tenants meet.
    """
    read = [read_entry(entry) for entry in entries]
    together = _together(read)
    ring: dict[bytes, ApiKey] = {}
    for entry in read:
        digests = [entry.digest] if entry.digest is not None else sorted(map(digest_of, entry.spellings))
        for digest in digests:
            key = _key(entry, digests[0], together.get(entry.tenant, NO_LIMITS))
            other = ring.setdefault(digest, key)
            if other.tenant != key.tenant:
                text = f"expected each key of api_keys once: one is given twice, to {other.tenant!r} and to "
                raise ValueError(f"{text}{key.tenant!r}")
            if key.revoked and not other.revoked:
                ring[digest] = key  # wherever else it stands: nobody has to find all places to end it
            elif entry.words and other != key and not other.revoked:
                raise ValueError(f"expected each key of api_keys once: {key.id} of {key.tenant!r} is given twice")
    return ring


def _together(entries: Iterable[KeyEntry]) -> dict[str, Limits]:
    found: dict[str, Limits] = {}
    for entry in entries:
        if entry.is_of_tenant and found.setdefault(entry.tenant, limits := _limits(entry.words)) != limits:
            raise ValueError(f"of {entry.tenant!r}: expected one line with limits of all keys, not two")
    return found


def read_key_file(path: Path) -> list[str]:
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
            read_entry(line)
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from None
    return [line for _, line in entries]


def _key(entry: KeyEntry, digest: bytes, together: Limits) -> ApiKey:
    words = entry.words
    return ApiKey(
        tenant=entry.tenant,
        digest=digest,
        name=words.get("name", id_of(digest) if entry.digest is not None else ""),
        models=tuple(pattern for pattern in words.get("models", "").split(",") if pattern),
        priority=_class_of(words.get("priority", "default")),
        sees_all_tenants="metrics" in words,
        limits=_limits(words),
        tenant_limits=together,
        expires=read_moment(words["expires"]) if "expires" in words else None,
        revoked=words.get("revoked", ""),
    )


def _limits(words: Mapping[str, str]) -> Limits:
    found = Limits(*(read_count(words[name]) if name in words else None for name in _LIMITS))
    return found if found != NO_LIMITS else NO_LIMITS


def _class_of(word: str) -> PriorityClass:
    known = class_of(word)
    if known is None:
        raise ValueError(f"priority: expected one of {', '.join(CLASSES)}")
    return known


def _words(tenant: str, given: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE words; they are checked here, so that a mistake is told with its line."""
    words: dict[str, str] = {}
    for word in given:
        name, _, value = word.partition("=")
        if name not in known or not value:
            text = f"of {tenant!r}: expected NAME=VALUE with a name of {', '.join(known)}"
            raise ValueError(f"{text}, not {name[:20]!r}" if name.isidentifier() else text)
        if name in words:
            raise ValueError(f"of {tenant!r}: {name} stands there twice")
        words[name] = value
    if "name" in words and not _NAME.fullmatch(words["name"]):
        raise ValueError(f"of {tenant!r}: expected a name of at most 64 letters, digits and . _ @ -")
    if words.get("metrics", "all") != "all":
        raise ValueError(f"of {tenant!r}: metrics=all is meant, or nothing")
    _class_of(words.get("priority", "default"))
    _limits(words)
    if "expires" in words:
        read_moment(words["expires"])
    return words


def read_count(text: str) -> int:
    """Read a number such as 60, 100k or 5M. Raises ValueError."""
    found = _COUNT.fullmatch(text)
    if found is None:
        raise ValueError(f"expected a whole number from 1, such as 60, 100k or 5M, not {text[:20]!r}")
    return int(found[1]) * _TIMES[found[2]]


def read_moment(text: str) -> float:
    """Read a day or a time of a day; without a zone in UTC. Raises ValueError."""
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a day or a time, such as 2027-01-31T12:00Z, not {text[:30]!r}") from None
    return (at if at.tzinfo is not None else at.replace(tzinfo=dt.UTC)).timestamp()


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
    return unquoted(_as_text(tenant)), unquoted(key)


def _as_text(tenant: str) -> str:
    """Return a name that can be written down; from an environment in ISO-8859-1 it comes as halves of characters."""
    raw = tenant.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
