"""Noise for sampling that is a pure function of (seed, position, token id): the same alone, in any batch, on any node.

A token is drawn as the argmax of logit / temperature + Gumbel noise (the Gumbel-max trick), so sampling has no state
to carry along: a generation that goes on elsewhere draws the noise it would have drawn here. What is hashed is the
block of four little-endian 32-bit words (seed >> 32, seed & 0xffffffff, position, token id), with MurmurHash3_x86_32
under hash seed 0 (Austin Appleby, public domain, https://github.com/aappleby/smhasher): 32-bit multiply, rotate, xor
and nothing else, so that numpy, torch and a GPU kernel agree to the bit. Only the two logarithms after it may differ in
the last bit between libraries, which matters only where two scores are equal to seven digits.

The last word is the token id, so everything before it is one number per row (`murmur3.row_state`), and what depends
on the token alone is one vector per vocabulary; an element costs one more round and the finaliser.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from .murmur3 import C1, C2, LENGTH_BYTES, MASK, MIX1, MIX2, ROUND_ADD

_SCALE: Final = 2.0**-32
_BELOW_ONE: Final = 1.0 - 2.0**-24
"""The largest float32 below one: a uniform rounded up to one would give noise of minus infinity."""


def _signed(value: int) -> int:
    """View 32 bits as the int32 of the same bits: torch's uint32 lacks shifts and products."""
    return value - 2**32 if value >= 2**31 else value


def words_of(seed: int) -> tuple[int, int]:
    """Split a seed into the two words that are hashed, high and low, as int32."""
    return _signed(seed >> 32 & MASK), _signed(seed & MASK)


def row_states(high: torch.Tensor, low: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Compute the states of rows where their seeds lie: int32 [rows] each, the bits of `murmur3.row_state`."""
    state = high.new_zeros(high.shape)
    for word in (high, low, positions):
        scrambled = _turn(word * _signed(C1), 15) * C2
        state = _turn(state.bitwise_xor(scrambled), 13) * 5 + _signed(ROUND_ADD)
    return state


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right and fill with zeros (torch's own shift of an int32 copies the sign)."""
    return (value >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _turn(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Rotate left."""
    return (value << bits).bitwise_or_(_shift(value, 32 - bits))


class GumbelNoise:
    """The noise of many rows at once, on one device; torch's int32 wraps, as the hash's uint32 does."""

    def __init__(self, vocabulary: int, device: torch.device | str) -> None:
        ids = torch.arange(vocabulary, dtype=torch.int32, device=device)
        self.words: torch.Tensor = _turn(ids * _signed(C1), 15) * C2
        """Each id scrambled, the part of its hash that depends on the token alone: int32 [vocabulary]."""

    def states(self, states: Sequence[int]) -> torch.Tensor:
        """Bring states of rows to the device: int32 [rows]."""
        return torch.tensor([_signed(state) for state in states], dtype=torch.int32, device=self.words.device)

    def hashes(self, states: torch.Tensor) -> torch.Tensor:
        """Hash every token of every row: int32 [rows, vocabulary]."""
        value = self.words.bitwise_xor(states.unsqueeze(1))
        value = _turn(value, 13).mul_(5).add_(_signed(ROUND_ADD))
        value.bitwise_xor_(LENGTH_BYTES)
        value.bitwise_xor_(_shift(value, 16)).mul_(_signed(MIX1))
        value.bitwise_xor_(_shift(value, 13)).mul_(_signed(MIX2))
        return value.bitwise_xor(_shift(value, 16))

    def draw(self, states: torch.Tensor) -> torch.Tensor:
        """Draw the noise of rows with these states: float32 [rows, vocabulary].

        The uniform is (hash + 1/2) / 2**32; small uniforms become large noise, and near zero a float32 has bits to
        spare, so unlikely tokens are drawn as often as they should be (down to about 1e-10).
        """
        unsigned = self.hashes(states).long().bitwise_and_(MASK)
        uniform = unsigned.float().add_(0.5).mul_(_SCALE).clamp_(max=_BELOW_ONE)
        uniform.neg_().log1p_().neg_().log_().neg_()
        return uniform
