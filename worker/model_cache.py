"""The folder where converted and downloaded models lie, and how a folder in it comes into being: whole or not at all.

A folder is built beside its place and renamed into it, so that a reader never sees half of one. A lock file makes two
processes that want the same folder build it once; the operating system drops the lock of a process that dies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Final

from ..protocol.settings.variables import CACHE_ENV
from .model_error import ModelError

LOCK_WAIT_S: Final = 1800.0
"""Long enough for the largest download on a slow line; a holder that died has let go long before."""
_LOCK_POLL_S: Final = 0.1


def cache_dir() -> Path:
    """Return where models are kept: ZMQRT_CACHE, else `zmqrt` in the user's cache folder."""
    own = os.environ.get(CACHE_ENV)
    if own:
        return Path(own).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "zmqrt" / "cache"
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "zmqrt"


def build_once(place: Path, build: Callable[[Path], None]) -> Path:
    """Return `place`; if it is not there, let `build` fill a folder that becomes it. Others meanwhile wait."""
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place.with_name(place.name + ".lock")):
        if not place.is_dir():
            _sweep(place)
            _build(place, build)
    return place


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
