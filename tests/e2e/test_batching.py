"""The dynamic batcher in a real engine process: full batches under load, no wait without it."""

from __future__ import annotations

import asyncio
import time

import pytest

from support.stack import Stack, eventually, running
from zmqrt.client import AsyncClient
from zmqrt.protocol.snapshot import DeviceStatus

pytestmark = pytest.mark.e2e
ONE_SLOW_DEVICE = ("--devices", "mock:0", "--engine-opt", "step_ms=50", "--batch-max-size", "8")


def device(stack: Stack) -> DeviceStatus:
    """Look at the one device."""
    (node,) = stack.status().nodes
    (only,) = node.devices
    return only


async def embed_at_once(stack: Stack, count: int) -> None:
    """Send so many embeddings at the same time."""
    async with AsyncClient(stack.clients) as client:
        await asyncio.gather(*(client.embed(f"text {n}", model="mock-embed") for n in range(count)))


def test_sixty_four_at_once_need_few_batches_and_none_too_large() -> None:
    """64 requests run in at most 11 batches by the engine's own count, none above 8."""
    with running(worker=ONE_SLOW_DEVICE) as stack:
        before = device(stack).steps
        asyncio.run(embed_at_once(stack, 64))
        after = eventually(lambda: d if (d := device(stack)).steps - before >= 8 else None, what="the counters")

    assert after.steps - before <= 11
    assert after.largest_batch == 8


def test_a_lone_request_does_not_wait_for_company() -> None:
    """BATCH_MAX_LATENCY_MS is an upper bound: an idle device starts at once."""
    with running(worker=(*ONE_SLOW_DEVICE, "--batch-max-latency", "2000ms")) as stack, stack.client() as client:
        started = time.monotonic()
        client.embed("alone", model="mock-embed")
        took_s = time.monotonic() - started

    assert took_s < 1.0  # half of what waiting would cost: a bound of behaviour, not of speed
