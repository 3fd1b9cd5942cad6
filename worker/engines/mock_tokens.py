"""The toy model's arithmetic: the next token is a hash of the seed, the position and all tokens before it.

Pure integers, no state. `MockEngine` computes it step by step through its slot store; `expected_tokens` computes the
same from scratch, so that a test, or a load generator, can say what the right answer is without asking the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

REVISION: Final = "hash-1"
"""Changes when the arithmetic does: a stream may go on only on an equal revision."""
EOS: Final = 257
VOCABULARY: Final = 262
_MASK: Final = 2**64 - 1
_EOS_ONE_IN: Final = 96
_GREEDY_BELOW: Final = 1e-5
_SPACE: Final = ord(" ")

# Mostly letters; a few characters of two, three and four bytes, so that halves of characters occur.
_LETTERS: Final = b"eeeetttaaaoooiinnsshhrrddlluucmwfgypbvk" + b" " * 8 + b".,"
_WIDE: Final = tuple(text.encode() for text in ("é", "你", "🚀"))
_PRINTABLE: Final = range(0x20, 0x7F)
_ENDERS: Final[tuple[int, ...]] = (EOS, *b'}]",')
_CONTINUATION: Final = {word[:cut]: word[cut] for word in _WIDE for cut in range(1, len(word))}


def mix(value: int) -> int:
    """Scramble 64 bits: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def extend(chain: int, token_id: int) -> int:
    """Add one token to the hash of all tokens before it; an empty sequence has the hash 0."""
    return mix(chain ^ (token_id + 1))


@lru_cache(256)  # as many answers as run at a time: it is asked for with each token of them
def noise_of(seed: int, temperature: float) -> int:
    """Turn a seed into what is mixed in; greedy decoding has no noise."""
    return 0 if temperature < _GREEDY_BELOW else mix(seed)


def next_token(chain: int, noise: int, last: Sequence[int], *, may_end: bool) -> int:
    """Choose the token that follows.

    Args:
        chain: Hash of all tokens before it (`extend`).
        noise: What the seed adds (`noise_of`).
        last: The three tokens before it, or fewer: a character that is half written is finished first. None at all
            will do where the one before is ASCII.
        may_end: Whether EOS is allowed here.
    """
    if last and 0x80 <= last[-1] < 256:  # else no character is half written
        for cut in (1, 2, 3):
            tail = bytes(token & 0xFF for token in last[-cut:]) if all(token < 256 for token in last[-cut:]) else b""
            if len(tail) == cut and tail in _CONTINUATION:
                return _CONTINUATION[tail]
    draw = mix(chain ^ noise)
    if draw % _EOS_ONE_IN == 0:
        return EOS if may_end else _SPACE
    draw >>= 32
    kind = draw % (len(_LETTERS) + len(_WIDE))
    return _LETTERS[kind] if kind < len(_LETTERS) else _WIDE[kind - len(_LETTERS)][0]


def token_under(mask: bytes, chain: int, noise: int) -> int:
    """Choose a token that a mask allows: one that ends something every fourth time, so that texts and lists end."""
    bits = int.from_bytes(mask, "little")
    draw = mix(chain ^ noise)
    enders = [token for token in _ENDERS if bits >> token & 1]
    if enders and draw % 4 == 0:
        return enders[0]
    allowed: list[int] = [token for token in _PRINTABLE if bits >> token & 1]
    allowed = allowed or [token for token in range(VOCABULARY) if bits >> token & 1]
    return allowed[(draw >> 8) % len(allowed)]


def expected_tokens(
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    seed: int = 0,
    temperature: float = 0.0,
    ignore_eos: bool = False,
    min_new_tokens: int = 0,
) -> list[int]:
    """Compute what the toy model answers, from scratch; EOS, if drawn, is the last token."""
    chain = 0
    for token in prompt_ids:
        chain = extend(chain, token)
    noise = noise_of(seed, temperature)
    ids = list(prompt_ids)
    made: list[int] = []
    while len(made) < max_new_tokens:
        may_end = not ignore_eos and len(made) >= min_new_tokens
        token = next_token(chain, noise, ids[-3:], may_end=may_end)
        made.append(token)
        ids.append(token)
        chain = extend(chain, token)
        if token == EOS:
            break
    return made
