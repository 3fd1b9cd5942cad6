"""What a look at one thing came to: a verdict, what was found, and one sentence on what to do. No input, no output."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ...protocol.errors import EXIT_FAILED, EXIT_OK

Verdict = Literal["ok", "note", "bad"]
"""note: works, but somebody may want to know. bad: something does not work, or is unsafe."""
Version = tuple[int, ...]
_NUMBERS: Final = re.compile(r"\d+(?:\.\d+)*")


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the result. `remedy` is empty where all is well."""

    group: str
    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def parse_version(text: str) -> Version:
    """Read the numbers that a version begins with: `2.13.0+cpu` is (2, 13, 0), and what has none is ()."""
    found = _NUMBERS.match(text)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def show_version(version: Version) -> str:
    """Write a version as people do."""
    return ".".join(map(str, version))


def show_bytes(count: int) -> str:
    """Write a size in the unit that leaves few digits."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"


def count_of(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def cut_remedy(text: str, otherwise: str) -> tuple[str, str]:
    """Part an error's text into what happened and what to do; our own errors say both, most with a semicolon between.

    Args:
        otherwise: What to do about an error that does not say it.
    """
    for mark in ("; ", ". "):
        found, _, remedy = text.partition(mark)
        if remedy:
            return found, remedy
    return text, otherwise


def exit_code(checks: Iterable[Check]) -> int:
    """Return how the command ends: notes are no failure."""
    return EXIT_FAILED if any(one.verdict == "bad" for one in checks) else EXIT_OK
