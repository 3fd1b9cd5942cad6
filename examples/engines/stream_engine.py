"""A model that deals in text itself: yield it in pieces. zmqrt streams them, and stops when the caller leaves.

zmqrt-worker --engine stream_engine:factory          (with this folder on PYTHONPATH)
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from zmqrt.worker.engines.base import Capacity, EngineSpec, Progress


class Parrot:
    """Says the prompt again, word by word."""

    async def generate(self, task: dict[str, Any]) -> AsyncIterator[str]:
        """Yield one word after the other."""
        for word in str(task["prompt"]).split():
            await asyncio.sleep(0.01)
            yield word + " "

    def capacity(self) -> Capacity:
        """Any number beside each other would do; a bound is a bound."""
        return Capacity(slots=64, context=4096)

    async def close(self) -> None:
        """Nothing to free."""


def factory(spec: EngineSpec, progress: Progress) -> Parrot:
    """Build one for each device."""
    return Parrot()
