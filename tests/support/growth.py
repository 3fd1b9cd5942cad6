"""How much a core holds: every object that can be reached from it, whatever tables it has or will have."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, cast

_ELSEWHERE = (type, ModuleType, CodeType, BuiltinFunctionType)
"""What belongs to the program and not to the core."""


def held(*roots: object) -> int:
    """Count the objects that hang on the roots, and the bytes of the bodies among them in hundreds."""
    seen: set[int] = set()
    found: list[object] = list(roots)
    total = 0
    while found:
        one = found.pop()
        if id(one) in seen or isinstance(one, _ELSEWHERE):
            continue
        seen.add(id(one))
        total += 1 + (len(one) // 100 if isinstance(one, (bytes, bytearray)) else 0)
        if isinstance(one, FunctionType):
            found += cast("tuple[Any, ...]", one.__closure__ or ())  # its globals are the program
            continue
        found += gc.get_referents(one)
        # The collector does not look into messages (`gc=False`); this does.
        found += [getattr(one, name) for name in getattr(one, "__struct_fields__", ())]
    return total


def grown(roots: Callable[[], tuple[object, ...]], work: Callable[[int], None], *, first: int, more: int) -> int:
    """Do `first` pieces of work, then `more`, each with a number of its own; return how much more is held then."""
    for number in range(first):
        work(number)
    before = held(*roots())
    for number in range(first, first + more):
        work(number)
    return held(*roots()) - before
