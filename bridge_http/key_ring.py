"""The keys that are let in, read again when their file changes.

The file is looked at by a timer of the event loop: what is edited counts within a second, for requests that come and
for those under way. A file that cannot be read any more changes nothing (the last good one counts), and is told of
loudly: somebody may be waiting for a key to be gone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from ..protocol.api_keys import ApiKey, read_key_file, read_ring
from ..protocol.errors import ConfigurationError
from .config import BridgeSettings

LOOK_EVERY_S: Final = 0.25
"""What is revoked is refused within a second. The second look that finds the same change takes it, so that nothing
is read that is still being written."""
WhyNot = Callable[[ApiKey], str]
"""Says why a key is not let in any more; "" while it is."""
_Stamp = tuple[int, int, int, int]
log = logging.getLogger(__name__)


class KeyRing:
    """The keys of one bridge."""

    def __init__(self, settings: BridgeSettings, clock: Callable[[], float] = time.time) -> None:
        self._listed = settings.api_keys
        self._path = settings.api_keys_file
        self._clock = clock
        self._keys = settings.key_ring
        self._seen: _Stamp | None = None  # none yet: it may have changed since the settings read it
        self._news: _Stamp | None = None
        self._may_expire = _may_expire(self._keys)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tell: Callable[[WhyNot], None] | None = None
        self.problem = ""
        """Why the file as it is now does not count; "" = it does."""

    def __bool__(self) -> bool:
        """Whether keys are asked for; once they are, no change of the file opens the door."""
        return self._path is not None or bool(self._keys)

    def find(self, digest: bytes) -> ApiKey | None:
        """Return the key of that hash, whether or not it is still let in."""
        return self._keys.get(digest)

    def why_not(self, key: ApiKey) -> str:
        """Say why a key that was let in is not let in any more; "" while it is."""
        current = self._keys.get(key.digest)
        return current.why_not(self._clock()) if current is not None else "this key was taken off the list"

    def watch(self, tell: Callable[[WhyNot], None]) -> None:
        """Have `tell` called with `why_not` whenever keys may have gone."""
        self._tell = tell

    def look_on(self) -> None:
        """See to it that the file is looked at from now on, in the loop that serves."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop and (self._path is not None or self._may_expire):
            self._loop = loop
            self.look()  # what has changed since the settings were read; the first who asks may have a revoked key
            self._ring(loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(LOOK_EVERY_S, self._ring, loop)
        has_changed = self.look()
        if self._tell is not None and (has_changed or self._may_expire):
            self._tell(self.why_not)

    def look(self) -> bool:
        """Read the file again if it is another one; return whether the keys are other ones now."""
        if self._path is None:
            return False
        try:
            found = self._path.stat()
        except OSError as error:
            self._seen = None
            self._keep(f"{self._path} cannot be read: {error.strerror}")
            return False
        stamp = found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size
        is_steady, self._news = stamp == self._news, stamp
        if stamp == self._seen or not is_steady:
            return False
        self._seen = stamp
        try:
            keys = read_ring([*self._listed, *read_key_file(self._path)])
        except (ConfigurationError, ValueError) as error:
            self._keep(str(error))
            return False
        if self.problem:
            log.info("%s counts again", self._path)
        has_changed, self._keys, self.problem = keys != self._keys, keys, ""
        self._may_expire = _may_expire(keys)
        if has_changed:
            log.info("the keys of callers have changed: %d are listed", len(set(keys.values())))
        return has_changed

    def _keep(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s: this change of the keys does not count, those from before do", problem)
        self.problem = problem


def _may_expire(keys: dict[bytes, ApiKey]) -> bool:
    return any(key.expires is not None for key in keys.values())
