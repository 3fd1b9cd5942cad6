"""Too little memory for a model: told from other faults, and put into words for an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from zmqrt.worker.engines.oom import REMEDIES, explain

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 15.12 MiB is "
    "free. Including non-PyTorch memory, this process has 79.08 GiB memory in use."
)


def of_numpy() -> None:
    """Ask numpy for a pebibyte."""
    np.empty(1 << 50, np.uint8)


def of_torch() -> None:
    """Ask torch for one."""
    torch: Any = pytest.importorskip("torch")
    torch.empty(1 << 50, dtype=torch.uint8)


def of_cuda() -> None:
    """Raise what torch raises for a GPU."""
    torch: Any = pytest.importorskip("torch")
    raise cast("type[Exception]", torch.OutOfMemoryError)(CUDA)


def of_python() -> None:
    """Raise the plain error."""
    raise MemoryError


@pytest.mark.parametrize(
    ("ask", "numbers"),
    [
        (of_numpy, " (it asked for 1.00 PiB)"),
        (of_torch, " (it asked for 1048576.0 GiB)"),
        (of_cuda, " (it asked for 20.00 GiB, 15.12 MiB were free)"),
        (of_python, ""),
    ],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_every_sort_is_told_in_one_sentence(ask: Callable[[], None], numbers: str, *, is_wrapped: bool) -> None:
    """The real errors of numpy and torch, raised as they are or as the cause of a loader's own."""
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        ask()
    error: BaseException = caught.value
    if is_wrapped:
        error = ValueError("cannot load the weights")
        error.__cause__ = caught.value

    assert explain(error, "toy") == f"there is too little memory to load toy{numbers}; {REMEDIES}"


@pytest.mark.parametrize(
    "error", [OSError("no weights"), RuntimeError("CUDA error: device-side assert triggered"), ValueError(CUDA)]
)
def test_other_faults_are_left_alone(error: Exception) -> None:
    """Words about memory count only in errors that an allocator raises."""
    assert explain(error, "toy") is None


def test_errors_that_cause_one_another_do_not_go_on_for_ever() -> None:
    """However a loader has tied them."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one

    assert explain(one, "toy") is None
