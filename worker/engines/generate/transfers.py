"""Small tensors to the device and back, beside what it computes.

On CUDA three streams: one computes, one brings numbers up, one brings results down. What goes up comes from pinned
memory, which torch's allocator does not give out again before the copy is done; so there is a ring without our keeping.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import torch

_SPIN_S: Final = 0.0002
"""A step that is over by then is not slept for: the shortest sleep is half as long as that."""
_LOOK_EVERY_S: Final = 0.0001
_cuda: Any = torch.cuda  # its classes are not typed


class Arrival:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[torch.Tensor], event: Any) -> None:  # noqa: ANN401 - torch's event
        self._tensors = tensors
        self._event = event

    def lists(self) -> list[Any]:
        """Return them as numbers, once they are there."""
        tensors: Any = self._tensors
        return [tensor.tolist() for tensor in tensors]

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long; True once they are there."""
        began_at = time.monotonic()
        while self._event is not None and not self._event.query():
            waited_s = time.monotonic() - began_at
            if waited_s >= timeout_s:
                return False
            if waited_s >= _SPIN_S:
                time.sleep(_LOOK_EVERY_S)  # not `synchronize`: a device that hangs must not stop the loop for good
        return True


class Transfers:
    """The streams of one device; on a CPU everything happens at once."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._is_cuda = self.device.type == "cuda"
        if self._is_cuda:
            self.compute, self._going_up, self._going_down = (_cuda.Stream(self.device) for _ in range(3))

    def computing(self) -> AbstractContextManager[object]:
        """Let what is called inside compute on the computing stream."""
        return torch.cuda.stream(self.compute) if self._is_cuda else contextlib.nullcontext()

    def settle(self) -> None:
        """Wait until everything is done that was begun before: weights and tables come from another stream."""
        if self._is_cuda:
            torch.cuda.synchronize(self.device)

    def up(self, values: Sequence[int]) -> torch.Tensor:
        """Bring integers to the device: int64 [values]. Call it while `computing`."""
        if not self._is_cuda or not values:
            return torch.tensor(values, dtype=torch.int64, device=self.device)
        return self._bring(torch.tensor(values, dtype=torch.int64, pin_memory=True))

    def up_words(self, words: memoryview) -> torch.Tensor:
        """Bring words of 64 bits to the device, many at once: as `up`, without a number of Python's for each."""
        plain = torch.frombuffer(words, dtype=torch.int64)
        return self._bring(plain.pin_memory()) if self._is_cuda else plain

    def _bring(self, pinned: torch.Tensor) -> torch.Tensor:
        with torch.cuda.stream(self._going_up):
            there = pinned.to(self.device, non_blocking=True)
        self.compute.wait_stream(self._going_up)
        there.record_stream(self.compute)
        return there

    def down(self, *tensors: torch.Tensor) -> Arrival:
        """Bring tensors to the host once what computes them now is done. Call it while `computing`.

        They must not be written again before they have arrived: hand in copies of what a next step uses.
        """
        if not self._is_cuda:
            return Arrival(tensors, None)
        self._going_down.wait_stream(self.compute)
        with torch.cuda.stream(self._going_down):
            there = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
            for target, source in zip(there, tensors, strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(self._going_down)
            event = _cuda.Event()
            event.record(self._going_down)
        return Arrival(there, event)
