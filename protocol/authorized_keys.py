"""The lists of who may connect, `authorized_workers` and `authorized_clients`: read, and edited line by line.

    <public key, 40 characters> <name> [admin] [bridge] [once] [expires=WHEN] [revoked=WHEN] [used=WHEN]

A key that is marked `once` lets nobody in: its holder may list another one with its name and rights instead, once. One
that is revoked or has expired stays on its line, so that whoever is refused is told by name. Comments, order and other
lines stay as they are when one is edited; a broker that reads meanwhile sees the old list or the new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .api_keys import moment, read_moment
from .errors import ConfigurationError
from .file_edits import alone, replace_text
from .keys import Z85_KEY, read_key_text
from .limits import MAX_NAME_CHARS

_ADMIN: Final = "admin"
_BRIDGE: Final = "bridge"
_ONCE: Final = "once"
_FLAGS: Final = (_ADMIN, _BRIDGE, _ONCE)
_TIMES: Final = ("expires", "revoked", "used")
_FORM: Final = "<40 characters of key> <name> [admin] [bridge] [once] [expires=WHEN] [revoked=WHEN]"
Group = Literal["workers", "clients"]
GROUPS: Final[tuple[Group, ...]] = ("workers", "clients")


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a listed key stands for. Admins may drain, load and unload; bridges ask for others, and say for whom."""

    name: str
    is_admin: bool = False
    is_bridge: bool = False


@dataclass(frozen=True, slots=True)
class ListedKey:
    """One line. `expires`: in seconds since 1970; `revoked` and `used`: since when, in the words of the file."""

    public: bytes
    principal: Principal
    expires: float | None = None
    revoked: str = ""
    is_once: bool = False
    used: str = ""

    @property
    def id(self) -> str:
        """What people call it by: the beginning of the public key."""
        return self.public[:8].decode()

    def why_not(self, now: float) -> str:
        """Say why it is not let in any more; "" while it is."""
        if self.revoked:
            return f"the key of {self.principal.name} was revoked ({self.revoked})"
        if self.used:
            return f"the line for {self.principal.name} was used up ({self.used})"
        if self.expires is not None and now >= self.expires:
            return f"the key of {self.principal.name} expired at {moment(self.expires)}"
        return ""


def list_path(directory: Path, group: Group) -> Path:
    """Return the file of a list."""
    return directory / f"authorized_{group}"


def load_allowed(directory: Path, group: Group) -> dict[bytes, Principal]:
    """Read whom a list lets in now: public key in Z85 -> principal. Raises ConfigurationError naming file and line."""
    now = time.time()
    found = load_list(directory, group).values()
    return {key.public: key.principal for key in found if not key.is_once and not key.why_not(now)}


def load_list(directory: Path, group: Group) -> dict[bytes, ListedKey]:
    """Read a list: public key in Z85 -> its line. Raises ConfigurationError naming file and line."""
    path = list_path(directory, group)
    return parse(read_key_text(path), path)


def parse(text: str, path: Path) -> dict[bytes, ListedKey]:
    """Read the text of a list; of two lines with one key the last one counts. Raises ConfigurationError."""
    found: dict[bytes, ListedKey] = {}
    rights: dict[str, Principal] = {}
    for number, words in _lines(text):
        try:
            key = _read_words(words)
        except ValueError as error:
            raise ConfigurationError(f"{path}, line {number}: {error}") from None
        principal = key.principal
        if not key.revoked and principal != (other := rights.setdefault(principal.name, principal)):
            what = _ADMIN if principal.is_admin != other.is_admin else _BRIDGE
            raise ConfigurationError(
                f"{path}, line {number}: {principal.name} is {what} on one line and not on another, and rights go by "
                "the name; give the keys two names"
            )
        found[key.public] = key
    return found


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and words[0] != "#":  # a key may begin with #, but a word of its own is a comment
            yield number, words


def _read_words(words: list[str]) -> ListedKey:
    key, *rest = words
    name, *marks = rest or [key[:8]]
    if not Z85_KEY.fullmatch(key):
        raise ValueError(f"expected '{_FORM}'")
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(f"the name {name[:20]!r}… has {len(name)} characters, over {MAX_NAME_CHARS}")
    said = {flag: value for flag, _, value in (mark.partition("=") for mark in marks)}
    if len(said) != len(marks) or not said.keys() <= {*_FLAGS, *_TIMES}:
        raise ValueError(f"expected '{_FORM}'")
    if any(said.get(flag) for flag in _FLAGS) or "" in [said.get(name) for name in _TIMES]:
        raise ValueError(f"expected '{_FORM}'")
    return ListedKey(
        key.encode(),
        Principal(name, is_admin=_ADMIN in said, is_bridge=_BRIDGE in said),
        expires=read_moment(said["expires"]) if "expires" in said else None,
        revoked=said.get("revoked", ""),
        is_once=_ONCE in said,
        used=said.get("used", ""),
    )


# --- edits -----------------------------------------------------------------------------------------------------------


def line_of(public: bytes, principal: Principal, expires: float | None, *, is_once: bool = False) -> str:
    """Write the line of a key. Raises ConfigurationError where it would not be read as that."""
    flags = ((_ADMIN, principal.is_admin), (_BRIDGE, principal.is_bridge), (_ONCE, is_once))
    marks = [word for word, is_so in flags if is_so]
    marks += [f"expires={moment(expires)}"] if expires is not None else []
    line = " ".join([public.decode(), principal.name, *marks])
    try:
        is_the_same = _read_words(line.split()).principal == principal
    except (ValueError, IndexError):
        is_the_same = False
    if not is_the_same or not principal.name.isprintable():
        text = f"expected a name of one word and at most {MAX_NAME_CHARS} characters, not {principal.name[:40]!r}"
        raise ConfigurationError(text)
    return line


def add(directory: Path, group: Group, line: str) -> None:
    """Add a line. Raises ConfigurationError; nothing is written then."""
    edit(directory, group, lambda text: with_line(text, line))


def with_line(text: str, line: str) -> str:
    """Return the text of a list with a line more."""
    gap = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{gap}{line}\n"


def mark(directory: Path, group: Group, public: bytes, said: Mapping[str, str]) -> None:
    """Set words such as `revoked=WHEN` on the line of a key. Raises ConfigurationError."""
    edit(directory, group, lambda text: marked(text, public, said))


def marked(text: str, public: bytes, said: Mapping[str, str]) -> str:
    """Return the text of a list with words set on the line of a key, in place of those of the same names."""
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines):
        words = line.split()
        if words and words[0] == public.decode():
            named = words if len(words) > 1 else [*words, words[0][:8]]
            kept = [word for word in named[2:] if word.partition("=")[0] not in said]
            lines[at] = " ".join([*named[:2], *kept, *(f"{name}={value}" for name, value in said.items())]) + "\n"
    return "".join(lines)


def enrol(directory: Path, group: Group, line_key: bytes, public: bytes, now: float) -> Principal:
    """List a key in place of a line that is good once, both in one step. Raises ConfigurationError saying why not."""
    found: list[Principal] = []

    def change(text: str) -> str:
        listed = parse(text, list_path(directory, group))
        line, own = listed.get(line_key), listed.get(public)
        if line is None or not line.is_once:
            raise ConfigurationError("this line is not listed as good once")
        if why := line.why_not(now):
            raise ConfigurationError(why)
        if own is not None or not Z85_KEY.fullmatch(public.decode("ascii", "replace")):
            raise ConfigurationError("a machine that joins needs a key of its own")
        found.append(line.principal)
        return with_line(marked(text, line_key, {"used": moment(now)}), line_of(public, line.principal, None))

    edit(directory, group, change)
    return found[0]


def edit(directory: Path, group: Group, change: Callable[[str], str]) -> None:
    """Replace a list by what `change` makes of it. Raises ConfigurationError; nothing is written then."""
    path = list_path(directory, group).resolve()  # a link goes on pointing to the file
    with alone(path.parent):
        changed = change(read_key_text(path))
        parse(changed, path)
        replace_text(path, changed, mode=0o644)
