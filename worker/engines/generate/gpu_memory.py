"""How much memory of a GPU is free, and how much more a piece of work took: the numbers that the pool is sized by."""

from __future__ import annotations

import gc
from typing import Any

import torch

_cuda: Any = torch.cuda  # its functions are not all typed


class GpuMemory:
    """The memory of one device, as its driver and torch's allocator tell."""

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._before = 0

    @property
    def free_bytes(self) -> int:
        """What nobody has taken, other processes included."""
        free, _ = _cuda.mem_get_info(self._device)
        return int(free)

    def watch(self) -> None:
        """Begin to measure what is taken from now on."""
        _cuda.synchronize(self._device)
        _cuda.reset_peak_memory_stats(self._device)
        self._before = int(_cuda.memory_allocated(self._device))

    def most_bytes(self) -> int:
        """Return how much more than at the beginning was taken at any one time."""
        return max(0, int(_cuda.max_memory_allocated(self._device)) - self._before)

    def is_lost(self) -> bool:
        """Whether the device fails at everything: one illegal access, and this process has no device any more."""
        try:
            _cuda.synchronize(self._device)
        except RuntimeError:
            return True
        return False

    def release(self) -> None:
        """Give back what nobody holds any more. Call it where no error does: its traceback holds all that failed."""
        gc.collect()
        _cuda.empty_cache()
