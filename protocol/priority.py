"""The classes of priority, which are words for numbers: what people name travels as `prio` like any other.

A higher number is served first, and a lower one still gets its turn after so many others (`broker/queues.py`).
"""

from __future__ import annotations

from typing import Final, Literal, get_args

PriorityClass = Literal["interactive", "default", "bulk"]
CLASSES: Final[tuple[PriorityClass, ...]] = get_args(PriorityClass)
NUMBERS: Final[dict[PriorityClass, int]] = {"interactive": 10, "default": 0, "bulk": -10}
LOWEST: Final = -100


def class_of(word: str) -> PriorityClass | None:
    """Return the class that a word names; None: it names none."""
    return next((known for known in CLASSES if known == word), None)


def number_of(given: str | int) -> int:
    """Return the number of a class; a number is one already. Raises ValueError for a word that names no class."""
    if isinstance(given, int):
        return given
    known = class_of(given)
    if known is None:
        raise ValueError(f"expected one of {', '.join(CLASSES)}, or a number")
    return NUMBERS[known]
