"""How a program of ours starts another one: with this interpreter, and with no code but what is installed.

`python -m` puts the working directory first on the import path, so that a stranger's `msgspec.py` there would run; `-P`
leaves it out. What PYTHONPATH names stays: the user said that.
"""

from __future__ import annotations

import os
import sys
from typing import Final

UTF8_OUTPUT: Final = {"PYTHONIOENCODING": "utf-8:backslashreplace"}
"""For the environment of children whose output we read: we know then how, whatever the locale is."""


def python(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module."""
    return [sys.executable, "-P", "-m", module, *map(_passable, arguments)]


def _passable(argument: str) -> str:
    """Return an argument that can be handed over in any locale: as the bytes of UTF-8, which `names.as_typed` reads."""
    return os.fsdecode(argument.encode("utf-8", "surrogateescape"))
