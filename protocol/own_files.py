"""Reads files that a program obeys (settings, keys, lists of keys): who may have written them, and in which encoding.

Whoever can write such a file decides what the program does, so one that another user owns, or may write, is refused.
Editors and shells of Windows begin a file with a byte order mark, or write UTF-16: that is text like any other.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shlex
import stat
import sys
from pathlib import Path
from typing import Final

from .errors import ConfigurationError

_BYTE_ORDER_MARKS: Final = (  # the longer ones first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_MAX_BYTES: Final = 4 << 20
"""More than any settings, and a list of some 50,000 keys; a device such as /dev/zero has no end."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_SECRETS: Final = Path("/run/secrets")
"""Where containers get theirs: for everybody to read, and there is nobody else. Some are copied there, not mounted."""
_MOUNTS: Final = Path("/proc/self/mountinfo")
_MODELESS: Final = re.compile(
    r" - (cifs|drvfs|exfat|fuse\.vmhgfs-fuse|fuseblk|msdos|ntfs3?|prl_fs|smb3|vboxsf|vfat|9p .*\baname=drvfs)\b"
)
"""File systems that show one mode for all files: drives of Windows in WSL, shares, folders of virtual machines."""


class LooseFileError(ConfigurationError):
    """Others may read a secret, or write what we obey."""


def decode(raw: bytes, errors: str = "strict") -> str:
    """Return text: by its byte order mark if it has one, else as UTF-8. Raises UnicodeDecodeError."""
    return raw.decode(next((name for mark, name in _BYTE_ORDER_MARKS if raw.startswith(mark)), "utf-8"), errors)


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Return a file's text.

    Raises:
        FileNotFoundError: there is none.
        ConfigurationError: it cannot be read, or is no text; the words name the file.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_BYTES >> 20} MiB; is it the right file?")
    try:
        text = decode(raw, errors)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark, or no text at all
        raise ConfigurationError(f"{path} is not UTF-8 text; save it as UTF-8")
    return text


def is_there(path: Path) -> bool:
    """Say whether there is a file of this name that we may see; a working directory can be closed to us, and a home."""
    try:
        return path.is_file()
    except OSError:
        return False


def refuse_foreign(path: Path, *, any_owner: bool = False) -> None:
    """Refuse a file that somebody else owns, or may write. Root may do everything anyway; a link counts like a file.

    Args:
        any_owner: The user named this very file, and so vouches for its owner.

    Raises:
        LooseFileError: naming the file, the reason and the remedy.
    """
    if sys.platform == "win32":
        return
    for found in (path.lstat(), path.stat()):
        if not any_owner and found.st_uid not in _own_uids():
            instead = "set its variables in the environment" if path.name == ".env" else "name it with --config"
            raise LooseFileError(
                f"{path} belongs to another user (uid {found.st_uid}) and is not obeyed; {instead}, make it yours with "
                "chown, or start from another directory"
            )
        if not stat.S_ISLNK(found.st_mode) and _others_may_write(found):
            raise LooseFileError(
                f"{path} may be written by other users and is not obeyed; run: chmod go-w {shlex.quote(str(path))}"
            )


def is_own(path: Path) -> bool:
    """Say whether the file belongs to this user, or to root."""
    return sys.platform == "win32" or path.stat().st_uid in _own_uids()


def _own_uids() -> set[int]:
    """Return who may tell us what to do: root, this user, and whoever became root by sudo to start us."""
    if sys.platform == "win32":
        return set()
    sudoer = os.environ.get("SUDO_UID", "") if os.geteuid() == 0 else ""
    return {0, os.geteuid(), *([int(sudoer)] if sudoer.isdecimal() else [])}


def refuse_readable(path: Path) -> None:
    """Refuse a secret of ours that others may read, as ssh does.

    What somebody else owns, or what is mounted for reading alone (the secrets of containers), is theirs to answer for.

    Raises:
        LooseFileError: naming the file and the remedy.
    """
    if sys.platform == "win32":
        return
    found = path.stat()
    is_mounted = bool(os.statvfs(path).f_flag & os.ST_RDONLY) or path.resolve().is_relative_to(_SECRETS)
    if found.st_uid == os.geteuid() and found.st_mode & _OTHERS and not is_mounted and _has_modes(found):
        mode = stat.S_IMODE(found.st_mode)
        raise LooseFileError(
            f"{path} holds a secret, and other users may read or change it (mode {mode:04o}); "
            f"run: chmod 600 {shlex.quote(str(path))}"
        )


def everybody_may_write(path: Path) -> bool:
    """Say whether any user of this machine may change the file."""
    found = path.stat()
    return sys.platform != "win32" and bool(found.st_mode & stat.S_IWOTH) and _has_modes(found)


def _others_may_write(found: os.stat_result) -> bool:
    is_open = bool(found.st_mode & stat.S_IWOTH)
    by_group = bool(found.st_mode & stat.S_IWGRP) and not _is_private_group(found.st_gid, found.st_uid)
    return (is_open or by_group) and _has_modes(found)


def _is_private_group(gid: int, owner: int) -> bool:
    """Say whether the group lets nobody in but root, us and the file's owner.

    With umask 002, many systems give every user such a group. Containers run as numbers without a name, and give their
    files to root's group.
    """
    if sys.platform == "win32":
        return False  # nobody asks there
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return True  # nobody is listed in a group that has no name
    for uid in (os.geteuid(), owner):
        with contextlib.suppress(KeyError):
            own = pwd.getpwuid(uid)
            if own.pw_gid == gid and group.gr_name == own.pw_name and set(group.gr_mem) <= {own.pw_name}:
                return True
    return False


def _has_modes(found: os.stat_result) -> bool:
    """Say whether a file's mode means anything where it lies, and chmod could change it."""
    if sys.platform == "win32":
        return False
    place = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    try:
        mounts = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        return True
    return not any(line.split()[2:3] == [place] and _MODELESS.search(line) for line in mounts)
