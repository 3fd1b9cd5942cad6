"""The hash under the noise of sampling, in plain integers: MurmurHash3_x86_32 over four 32-bit words.

`gumbel.py` says what it is for, and computes the same for whole rows in torch. This part does without, so that a node
that has no torch can plan, and run the mock.
"""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFFFFFF
C1: Final = 0xCC9E2D51
C2: Final = 0x1B873593
ROUND_ADD: Final = 0xE6546B64
MIX1: Final = 0x85EBCA6B
MIX2: Final = 0xC2B2AE35
LENGTH_BYTES: Final = 16


def _rotate(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (32 - bits))) & MASK


def _word(value: int) -> int:
    """Scramble one input word before it enters the state."""
    return _rotate(value * C1 & MASK, 15) * C2 & MASK


def row_state(seed: int, position: int) -> int:
    """Hash everything but the token id: the state of one row. `position` is the index of the token to be drawn."""
    state = 0
    for word in (seed >> 32 & MASK, seed & MASK, position & MASK):
        state = (_rotate(state ^ _word(word), 13) * 5 + ROUND_ADD) & MASK
    return state
