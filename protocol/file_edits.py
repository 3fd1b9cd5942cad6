"""Replaces files that others read meanwhile: what is written is whole or not there at all, also when we are killed.

Two who edit in one folder wait for one another: of two at once, the first one's line would be lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

from .errors import ConfigurationError

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that has no room, for anybody or for us."""


def replace_text(path: Path, text: str, *, mode: int) -> None:
    """Write a file under its name at once, on disk before it is there. Raises ConfigurationError.

    It stays that of its owner: a service whose file root has edited could not read it any more.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            _leave_to_owner(file.fileno(), path)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if mode != 0o600:
            with contextlib.suppress(OSError):  # a file system without modes
                new.chmod(mode)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None


def _leave_to_owner(handle: int, path: Path) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # there is none yet, or we are not root
            found = path.stat()
            os.fchown(handle, found.st_uid, found.st_gid)


@contextlib.contextmanager
def alone(folder: Path) -> Generator[None]:
    """Keep others of us from editing in a folder meanwhile."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
