"""Makes a tree of sources run on a machine that has torch and little else: no zmqrt installed, no package index.

A link as package `zmqrt` is all that an installation would add; what else is missing comes from wheels that were
carried there. Both are found by PYTHONPATH, so that child processes have them too. Only the standard library is needed
here.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
WHEELS: Final = ROOT / "bench" / "wheels"
"""Where wheels are looked for; git ignores it."""
NEEDED: Final = ("torch", "transformers", "msgspec")


def python_path(folder: Path, wheels: Path) -> list[str]:
    """Return what has to be on the path of children; what has to be made for that is made in `folder`."""
    found = [str(ROOT / "bench")]
    if not _is_there("zmqrt.worker"):
        (folder / "tree").mkdir()
        (folder / "tree" / "zmqrt").symlink_to(ROOT, target_is_directory=True)
        found.append(str(folder / "tree"))
    for wheel in _missing(wheels):
        place = folder / wheel.stem
        with zipfile.ZipFile(wheel) as content:
            content.extractall(place)
        found.append(str(place))
    return found


def lacking(path: list[str]) -> list[str]:
    """Return which of `NEEDED` neither this Python nor that path has."""
    return [name for name in NEEDED if not _is_there(name) and not any(Path(one, name).is_dir() for one in path)]


def environment(path: list[str]) -> dict[str, str]:
    """Return the environment of children that are to find what is there, and to run kernels as they are compiled."""
    given = os.environ.get("PYTHONPATH")
    others = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**others, "PYTHONPATH": os.pathsep.join([*path, *([given] if given else [])])}


def _missing(wheels: Path) -> Iterator[Path]:
    """Yield the wheels that fit this Python and whose packages it has not."""
    for wheel in sorted(wheels.glob("*.whl")):
        name, _, *_, python, abi, _ = wheel.stem.split("-")
        if not any(_fits(tag, abi) for tag in python.split(".")):
            continue
        try:
            distribution(name.replace("_", "-"))
        except PackageNotFoundError:
            yield wheel


def _fits(python: str, abi: str) -> bool:
    ours = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return python in {"py3", ours} or (abi == "abi3" and python.startswith("cp3"))


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
