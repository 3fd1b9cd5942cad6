"""Whatever waits for a GPU is an error for a while."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def no_waiting() -> Generator[None]:
    """Let torch raise where it would wait; afterwards it waits again, whatever happened inside.

    Each change of the mode warns that it is a prototype. With warnings as errors that would break the engine, and leave
    the mode on.
    """
    _set("error")
    try:
        yield
    finally:
        _set("default")


def _set(mode: str) -> None:
    cuda: Any = torch.cuda
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cuda.set_sync_debug_mode(mode)
