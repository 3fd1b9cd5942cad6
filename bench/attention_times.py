"""One decode step's attention by itself: each operation that there is, at lengths and batches as they occur.

Calls are recorded as one graph, so that a device is timed and not the host that calls it. Each call has keys and values
of its own as far as memory goes: what the call before has left in the cache of the device would make it look fast.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attentions
import torch
from decode_steps import dtype_for, settle

from zmqrt.worker.engines.generate.attention import AttentionShape
from zmqrt.worker.engines.generate.flash import Layout, Operation
from zmqrt.worker.engines.generate.hf_loader import untyped

CALLS: Final = 32
_REPLAYS: Final = 10
_MEMORY_SHARE: Final = 0.25
_CPU_BYTES: Final = 16 << 20


def measure(
    shape: AttentionShape,
    device: str,
    *,
    batches: Sequence[int],
    lengths: Sequence[int],
    bounds: Sequence[int],
    bytes_per_s: float,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the time of a call for each operation, batch, length and bound that the length allows."""
    makers, why_not = attentions.find(shape, dtype_for(device), device)
    yield "left out", why_not
    for batch, length in itertools.product(batches, lengths):
        calls = Calls(shape, device, batch, length)
        roofline_us = 1e6 * calls.bytes_read / bytes_per_s
        for name, make in makers.items():
            is_own = name == "triton"
            for is_deterministic in (False, True) if is_own else (False,):
                operation = make(batch, batch * length, is_deterministic)
                # Our own knows the lengths; torch's derives from the bound how it splits.
                for bound in [length] if is_own else [bound for bound in bounds if bound >= length]:
                    took_us = 1e6 * calls.time(operation, bound)
                    found = {"us": took_us, "share_of_roofline": roofline_us / took_us}
                    kind = f"{name}, deterministic" if is_deterministic else name
                    yield f"{kind}, batch {batch}, length {length}, at most {bound}", found
        del calls
        if device.startswith("cuda"):
            torch.cuda.empty_cache()  # the next pools are as large as there is memory


class Calls:
    """So many calls for sequences of one length, each in a pool of its own, which are gone through in turn."""

    def __init__(self, shape: AttentionShape, device: str, batch: int, length: int) -> None:
        self._device = device
        dtype = dtype_for(device)
        tokens = batch * length
        self.bytes_read = 2 * tokens * shape.kv_heads * shape.head_size * dtype.itemsize
        memory = _MEMORY_SHARE * torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else _CPU_BYTES
        pools = max(1, min(CALLS, int(memory // self.bytes_read)))
        size = (pools, 2, tokens, shape.kv_heads, shape.head_size)
        self._pools = torch.randn(size, dtype=dtype, device=device)
        self._query = torch.randn((batch, shape.heads, shape.head_size), dtype=dtype, device=device)
        starts = [number * length for number in range(batch)]
        self._starts, self._lengths, self._bounds = (
            torch.tensor(numbers, dtype=torch.int32, device=device)
            for numbers in ([*starts, 0], [length] * batch, list(range(batch + 1)))
        )

    @torch.inference_mode()
    def time(self, operation: Operation, most_keys: int) -> float:
        """Return the seconds that a call takes."""
        layout = Layout(self._starts[:-1].long(), self._bounds, self._starts, self._lengths, 1, most_keys)

        def call_all() -> None:
            once = dataclasses.replace(layout)  # what an operation plans once for all layers is part of a step
            for number in range(CALLS):
                pool = self._pools[number % len(self._pools)]
                operation(self._query, pool[0], pool[1], once, None)

        again = self._recorded(call_all) if self._device.startswith("cuda") else call_all
        again()
        settle(self._device)
        began = time.perf_counter()
        for _ in range(_REPLAYS):
            again()
        settle(self._device)
        return (time.perf_counter() - began) / (_REPLAYS * CALLS)

    def _recorded(self, call_all: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        stream: Any = untyped("torch").cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            call_all()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        settle(self._device)
        with torch.cuda.graph(graph, stream=stream):
            call_all()
        return graph.replay
