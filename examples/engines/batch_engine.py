"""A model that maps many inputs to as many outputs at once: the batcher in front of it collects them.

zmqrt-worker --engine batch_engine:factory          (with this folder on PYTHONPATH)
"""

import struct

from zmqrt.worker.engines.base import Capacity, EngineSpec, Item, ItemResult, Progress


class Lengths:
    """An "embedding" of one number: how long the text is."""

    def run(self, items: list[Item]) -> list[ItemResult]:
        """Answer each item, in their order."""
        return [ItemResult(ticket=item.ticket, body=embed(item)) for item in items]

    def capacity(self) -> Capacity:
        """Up to 32 inputs of up to 512 tokens."""
        return Capacity(slots=32, context=512)

    def close(self) -> None:
        """Nothing to free."""


def embed(item: Item) -> dict[str, object]:
    """Build the body of an embedding: rows of 32-bit floats."""
    texts = [item.task["input"]] if isinstance(item.task["input"], str) else item.task["input"]
    rows = struct.pack(f"<{len(texts)}f", *(len(text) for text in texts))
    vectors = {"dtype": "f4", "shape": [len(texts), 1], "data": rows}
    usage = {"prompt_tokens": item.length, "completion_tokens": 0}
    return {"vectors": vectors, "usage": usage, "model": "lengths", "revision": "1"}


def factory(spec: EngineSpec, progress: Progress) -> Lengths:
    """Build one for each device."""
    return Lengths()
