"""Standard streams that neither lose nor choke on a character, in any locale."""

from __future__ import annotations

import io
import os
import sys

from .errors import EXIT_READER_GONE


def prepare_stdio() -> None:
    """Make the streams UTF-8 on Windows, and let what an encoding cannot show be written as an escape everywhere."""
    encoding = "utf-8" if sys.platform == "win32" else None
    for stream in (sys.stdout, sys.stderr):
        _reconfigure(stream, encoding)
    if sys.platform == "win32":
        _reconfigure(sys.stdin, "utf-8-sig")


def _reconfigure(stream: object, encoding: str | None) -> None:
    if isinstance(stream, io.TextIOWrapper):  # a test may have put something else there
        stream.reconfigure(encoding=encoding, errors="backslashreplace")


def reader_gone() -> int:
    """Return the exit code of a program whose output nobody reads any more; Python is kept from noticing it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_READER_GONE
