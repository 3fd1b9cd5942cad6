"""The folder where converted and downloaded models lie, and how a folder in it comes into being: whole or not at all.

A folder is built beside its place and renamed into it, so that a reader never sees half of one. A lock file makes two
processes that want the same folder build it once; the operating system drops the lock of a process that dies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Final

from ..protocol.settings import CACHE_ENV, unquoted
from .model_files import ModelError

LOCK_WAIT_S: Final = 1800.0
"""Long enough for the largest download on a slow line; a holder that died has let go long before."""
_LOCK_POLL_S: Final = 0.1
_NO_PLACE: Final = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What is wrong with the place and not with the model."""


def cache_dir() -> Path:
    """Return where models are kept: ZMQRT_CACHE, else `zmqrt` in the user's cache folder."""
    own = unquoted(os.environ.get(CACHE_ENV, ""))
    if own:
        return Path(os.path.expanduser(own))  # noqa: PTH111 - leaves ~ alone where there is no home
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else _home() / "AppData" / "Local") / "zmqrt" / "cache"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else _home() / ".cache") / "zmqrt"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a container may run as any number
        raise ModelError(
            f"this user has no home directory, so there is no place for models: set {CACHE_ENV} (or HOME) to a folder "
            "that it may write"
        ) from None


def build_once(place: Path, build: Callable[[Path], None], *, needed_bytes: int = 0) -> Path:
    """Return `place`; if it is not there, let `build` fill a folder that becomes it. Others meanwhile wait.

    Raises:
        ModelError: the cache cannot be written, or is full.
    """
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_place(place.parent, error.strerror or str(error)) from error
    with room_for(place.parent, needed_bytes), _locked(place.with_name(place.name + ".lock")):
        if not place.is_dir():
            _sweep(place)
            _build(place, build)
    return place


@contextlib.contextmanager
def room_for(folder: Path, needed_bytes: int = 0) -> Generator[None]:
    """Check that so much fits into a folder of the cache, and say it in words where writing there fails all the same.

    Raises:
        ModelError: naming the folder, the reason, the size and the setting.
    """
    if needed_bytes and (free := shutil.disk_usage(folder).free) < needed_bytes:
        raise _no_place(folder, f"only {free >> 20} MiB are free", needed_bytes)
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise _no_place(folder, error.strerror or str(error), needed_bytes) from error


def _no_place(folder: Path, reason: str, needed_bytes: int = 0) -> ModelError:
    needed = f" (about {_mib(needed_bytes)} MiB are needed)" if needed_bytes else ""
    return ModelError(
        f"models cannot be kept in {folder}: {reason}{needed}; set {CACHE_ENV} to a folder that has room and that this "
        "user may write"
    )


def _mib(count: int) -> int:
    return -(-count >> 20)


def _build(place: Path, build: Callable[[Path], None]) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(place), dir=place.parent))
    try:
        build(scratch)
        scratch.chmod(0o755)  # mkdtemp makes it private, but workers of other users may share a cache
        scratch.rename(place)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _sweep(place: Path) -> None:
    """Remove what a killed process left: nobody else can be building, for we hold the lock."""
    for left in place.parent.glob(_scratch_prefix(place) + "*"):
        shutil.rmtree(left, ignore_errors=True)


def _scratch_prefix(place: Path) -> str:
    return f".{place.name}.part-"


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the lock file. It stays behind: removing it would let two holders lock two files of one name."""
    deadline = time.monotonic() + LOCK_WAIT_S
    with path.open("a+b") as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise ModelError(f"another process has been building {path.stem} for {LOCK_WAIT_S:.0f} s; see {path}")
            time.sleep(_LOCK_POLL_S)
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        """Lock the first byte; closing the file unlocks it."""
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        """Lock the file; closing it unlocks it."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
