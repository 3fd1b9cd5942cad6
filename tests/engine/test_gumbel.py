"""The noise: what it is made of, that every form of it agrees, and that it is noise."""

import struct

import numpy as np
import pytest

from support.reference_sampling import gumbel_row, hash_row, token_words
from zmqrt.worker.engines.gumbel import GumbelNoise, row_states, words_of
from zmqrt.worker.engines.murmur3 import row_state

GOLDEN = [
    # seed, position, token id, hash: MurmurHash3_x86_32 of the four words, hash seed 0
    (0, 0, 0, 0x8134CDF8),
    (0, 0, 1, 0x00990201),
    (0, 1, 0, 0x0D568719),
    (1, 0, 0, 0x0BD2CB93),
    (2**63 - 1, 8191, 49151, 0x0AB09632),
    (0x0123456789ABCDEF, 77, 128255, 0x2C4BDAD4),
]


def murmur3(data: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32 as its author wrote it, for whole words."""
    mask = 0xFFFFFFFF

    def rotate(value: int, bits: int) -> int:
        return (value << bits | value >> 32 - bits) & mask

    state = seed
    for (word,) in struct.iter_unpack("<I", data):
        state = (rotate(state ^ rotate(word * 0xCC9E2D51 & mask, 15) * 0x1B873593 & mask, 13) * 5 + 0xE6546B64) & mask
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & mask
    return state ^ state >> 16


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Measure how far counts are from what was expected."""
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("data", "seed", "published"), [(b"", 1, 0x514E28B7), (b"test", 0, 0xBA6BD213), (b"aaaa", 0x9747B28C, 0x5A97808A)]
)
def test_reference_is_the_published_function(data: bytes, seed: int, published: int) -> None:
    """The reference that the others are held against gives the published values."""
    assert murmur3(data, seed) == published


@pytest.mark.parametrize(("seed", "position", "token_id", "expected"), GOLDEN)
def test_hash_of_one_element_is_murmur3_of_the_four_words(
    seed: int, position: int, token_id: int, expected: int
) -> None:
    """The golden vectors hold, and are the documented function of the documented block."""
    block = struct.pack("<4I", seed >> 32, seed & 0xFFFFFFFF, position, token_id)

    assert murmur3(block) == expected
    assert hash_row(row_state(seed, position), token_words(token_id + 1))[-1] == expected


def test_torch_rows_equal_numpy_to_the_bit() -> None:
    """int32 that wraps and uint32 that wraps hold the same bits."""
    states = [row_state(seed, position) for seed in (0, 7, 2**63 - 1) for position in (0, 1, 8191)]

    noise = GumbelNoise(5000, "cpu")
    hashes = noise.hashes(noise.states(states)).numpy().view(np.uint32)

    assert (hashes == np.stack([hash_row(state, token_words(5000)) for state in states])).all()


def test_torch_computes_the_states_of_rows_to_the_bit() -> None:
    """Seeds and positions of any size, where they lie."""
    import torch

    pairs = [(seed, at) for seed in (0, 7, 2**31, 2**32 - 1, 2**63 - 1) for at in (0, 1, 8191, 2**20)]
    words = torch.tensor([words_of(seed) for seed, _ in pairs], dtype=torch.int32)
    positions = torch.tensor([at for _, at in pairs], dtype=torch.int32)

    states = row_states(words[:, 0], words[:, 1], positions).numpy().view(np.uint32)

    assert states.tolist() == [row_state(*pair) for pair in pairs]


def test_torch_noise_equals_numpy_up_to_the_last_bits() -> None:
    """The logarithms of two libraries may round apart, no more."""
    states = [row_state(seed, 3) for seed in range(8)]

    torch_noise = GumbelNoise(5000, "cpu")
    noise = torch_noise.draw(torch_noise.states(states)).numpy()

    expected = np.stack([gumbel_row(state, token_words(5000)) for state in states])
    assert np.allclose(noise, expected, rtol=1e-5, atol=1e-5)
    assert (noise.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_noise_is_finite_at_both_ends_of_the_hash() -> None:
    """The smallest and the largest hash give large and small noise, never infinity."""
    words = token_words(2**16)
    noise = np.concatenate([gumbel_row(row_state(seed, 0), words) for seed in range(64)])

    assert np.isfinite(noise).all()
    assert noise.max() > 13  # 4 million draws reach far into the tail …
    assert abs(float(noise.mean()) - 0.5772) < 0.002  # … and have the mean of Gumbel's distribution
    assert abs(float(noise.std()) - 1.2825) < 0.002


def draws(logits: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Draw one token for each (seed, position)."""
    words = token_words(len(logits))
    return np.array([(logits + gumbel_row(row_state(seed, position), words)).argmax() for seed, position in pairs])


@pytest.mark.parametrize("varies", ["seed", "position"])
def test_tokens_are_drawn_as_often_as_softmax_says(varies: str) -> None:
    """Over seeds, and over the positions of one seed, the draws fit the distribution."""
    logits = np.linspace(0.0, 3.0, 10).astype(np.float32)
    pairs = [(n, 5) if varies == "seed" else (42, n) for n in range(40_000)]

    counts = np.bincount(draws(logits, pairs), minlength=10)

    expected = np.exp(logits) / np.exp(logits).sum() * len(pairs)
    assert chi_square(counts, expected) < 27.9  # 9 degrees of freedom, one false alarm in 1,000


def test_neighbouring_positions_are_independent() -> None:
    """What is drawn at one position says nothing of the next."""
    drawn = draws(np.zeros(8, np.float32), [(9, n) for n in range(40_000)])

    pairs = np.bincount(drawn[:-1] * 8 + drawn[1:], minlength=64)

    assert chi_square(pairs, np.full(64, len(drawn[1:]) / 64)) < 103.5  # 63 degrees of freedom, one in 1,000
