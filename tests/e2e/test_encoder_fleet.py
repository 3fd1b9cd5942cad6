"""Real encoders behind a broker: the engine is chosen by the model, and a lost node costs no vector and no order."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest

from support.stack import Stack
from support.tiny_encoder import PlainEncoder, add_modules, tiny_encoder
from zmqrt.client import AsyncClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
TEXTS = 240
SEED = 15


def texts_of(count: int) -> list[str]:
    """Make texts of 1 to 14 words."""
    rnd = random.Random(SEED)
    return [" ".join(rnd.choices(["a", "bc", "def", "42"], k=rnd.randint(1, 14))) for _ in range(count)]


async def embed_and_kill(stack: Stack, texts: list[str]) -> list[list[float]]:
    """Embed texts one by one, many at once; kill a node when a third of them is done."""
    done = 0
    async with AsyncClient(stack.clients) as client:

        async def embed(text: str) -> list[float]:
            nonlocal done
            (vector,) = await client.embed(text)
            done += 1
            if done == len(texts) // 3:
                stack.node("one").kill()
            return list(vector)

        return await asyncio.gather(*map(embed, texts))


def test_a_node_killed_half_way_costs_no_vector_and_no_order(tmp_path: Path) -> None:
    """Nobody named an engine: that of a directory with an encoder is the encoder."""
    folder, texts = add_modules(tiny_encoder(tmp_path / "bert")), texts_of(TEXTS)
    with Stack() as stack:
        stack.broker()
        stack.worker("--model", str(folder), "--device", "cpu", engine="auto", node_id="one", wait=False)
        stack.worker("--model", str(folder), "--device", "cpu", engine="auto", node_id="two")
        stack.wait_for_nodes(2)
        found = asyncio.run(embed_and_kill(stack, texts))
        (service,) = stack.status().services

    plain, sample = PlainEncoder(folder), random.Random(SEED).sample(range(TEXTS), 60)
    expected = np.array([plain.vector(texts[index]) for index in sample])
    assert np.abs(expected - np.array(found)[sample]).max() < 1e-5, f"seed {SEED}"
    assert service.task == "embed"
