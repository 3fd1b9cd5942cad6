"""How the processor time of something grows with its size: a ratio, which no slow or busy machine moves by much."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_TRIES: Final = 3
"""Others on the machine make one measurement longer, and none shorter."""


def grows_by(most: float, work: Callable[[int], object], small: int, large: int) -> bool:
    """Whether WORK takes at most so many times as long for the large size as for the small one."""
    work(small)  # what happens once belongs to neither
    short = long = float("inf")
    for _ in range(_TRIES):
        short, long = min(short, _seconds(work, small)), min(long, _seconds(work, large))
        if long <= most * short:
            return True
    return False


def _seconds(work: Callable[[int], object], size: int) -> float:
    began = time.process_time()
    work(size)
    return time.process_time() - began
