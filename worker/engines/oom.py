"""Tell that there was too little memory for a model from other faults of loading it, and put it into one sentence.

Knows errors by their names and words, so it imports neither torch nor numpy. Which device it was is said by the agent:
a process of a GPU calls its own "cuda:0", whichever it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

REMEDIES: Final = (
    "free memory there (another process may hold it), or need less of it: a smaller model, --dtype bfloat16, "
    "a lower --max-model-len or --slots, fewer keys and values with --engine-opt kv_mib=N"
)
_ALLOCATORS: Final = (
    "CUDA out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
_ASKED: Final = re.compile(r"(?:tried|unable) to allocate ([\d.]+) (bytes|[KMGTPE]iB)", re.IGNORECASE)
_FREE: Final = re.compile(r"of which ([\d.]+) (bytes|[KMGTPE]iB) is free")
_MOST_CAUSES: Final = 10
"""Errors that are looked at behind the one that was raised: a loader wraps what it met once or twice."""


class OutOfMemoryError(Exception):
    """A model did not fit; the words are for an operator."""


def explain(error: BaseException, model: str) -> str | None:
    """Say in a sentence that loading `model` failed for want of memory, and what to do; None if it was not that."""
    for cause in _causes(error):
        if _is_about_memory(cause):
            return f"there is too little memory to load {model}{_numbers(str(cause))}; {REMEDIES}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):  # numpy's is one too
        return True
    if any((kind.__module__, kind.__name__) == ("torch", "OutOfMemoryError") for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def _numbers(words: str) -> str:
    asked, free = _size(_ASKED, words), _size(_FREE, words)
    if not asked:
        return ""
    return f" (it asked for {asked}, {free} were free)" if free else f" (it asked for {asked})"


def _size(pattern: re.Pattern[str], words: str) -> str:
    found = pattern.search(words)
    if found is None:
        return ""
    number, unit = found.groups()
    return f"{float(number) / (1 << 30):.1f} GiB" if unit == "bytes" else f"{number} {unit}"
