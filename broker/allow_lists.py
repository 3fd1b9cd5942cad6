"""The two allow-lists as they stand on disk, and whom they let in now: read again when a file changes or a key expires.

A list that cannot be read any more does not count: the one before it does, and the log says so. Otherwise half a line
that somebody writes would lock a fleet out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ..protocol.authorized_keys import GROUPS, Group, ListedKey, Principal, list_path, load_list
from ..protocol.errors import ConfigurationError

Allowed = Mapping[str, Principal]
"""Public key in Z85 -> whom it stands for."""
log = logging.getLogger(__name__)


class Ended(NamedTuple):
    """A key that is let in no more, or not as before, and why."""

    group: Group
    key: str
    why: str


class AllowList:
    """One list."""

    def __init__(self, directory: Path, group: Group) -> None:
        """Read it. Raises ConfigurationError."""
        self.group: Final = group
        self.allowed: Allowed = {}
        """Replaced as a whole, so that another thread may look into it."""
        self.once: Allowed = {}
        """Those that may list a key of their own, and nothing else; replaced likewise."""
        self._directory = directory
        self._stamp = self._look()
        self._listed = load_list(directory, group)
        self._next_expiry = -math.inf

    def refresh(self, now: float) -> list[Ended]:
        """Read the file if it has changed, and leave out what has expired; return whom that ends. `now`: since 1970."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            self._read_again()
        elif now < self._next_expiry:
            return []
        return self._replace(now)

    def _read_again(self) -> None:
        error = None
        try:
            self._listed = load_list(self._directory, self.group)
        except ConfigurationError as found:
            error = found
        if error is None:
            log.info("read the list of %s again: %d keys", self.group, len(self._listed))
        else:
            log.error("the list of %s is not obeyed, the one before it goes on to count: %s", self.group, error)

    def _replace(self, now: float) -> list[Ended]:
        before = self.allowed
        alive = {key.public.decode(): key for key in self._listed.values() if not key.why_not(now)}
        self.allowed = {public: key.principal for public, key in alive.items() if not key.is_once}
        self.once = {public: key.principal for public, key in alive.items() if key.is_once}
        self._next_expiry = min((key.expires for key in alive.values() if key.expires is not None), default=math.inf)
        return [
            Ended(self.group, key, self._why_ended(key, principal, now))
            for key, principal in before.items()
            if self.allowed.get(key) != principal
        ]

    def knows(self, key: str) -> bool:
        """Say whether a key may connect, if only to list another one."""
        return key in self.allowed or key in self.once

    def find(self, key: str) -> ListedKey | None:
        """Return the line of a key, let in or not."""
        return self._listed.get(key.encode())

    def _why_ended(self, key: str, principal: Principal, now: float) -> str:
        listed = self.find(key)
        if listed is None:
            return f"the key of {principal.name} is not listed any more"
        return listed.why_not(now) or f"the rights of {principal.name} have changed: connect again"

    def _look(self) -> tuple[int, ...]:
        try:
            found = list_path(self._directory, self.group).stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def read_lists(directory: Path, now: float) -> dict[Group, AllowList]:
    """Read both lists. Raises ConfigurationError."""
    lists: dict[Group, AllowList] = {group: AllowList(directory, group) for group in GROUPS}
    for each in lists.values():
        each.refresh(now)
    return lists


def principals(allowed: Allowed, name: str) -> Iterator[Principal]:
    """Yield what stands on the lines of a name."""
    return (principal for principal in allowed.values() if principal.name == name)
