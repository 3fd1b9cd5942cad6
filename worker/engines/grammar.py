"""Which tokens may come next in an answer that keeps to a grammar: a JSON schema, a regular expression, or Lark.

llguidance (https://github.com/guidance-ai/llguidance) knows the grammars; `worker/grammar_check.py` has looked at them
before they come here. Where an answer is after some tokens depends on nothing but those tokens, so one that goes on
elsewhere gets the very masks that it would have got here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from .base import RequestRefusedError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_SHORT: Final = 300


def is_installed() -> bool:
    """Whether there is llguidance."""
    return find_spec("llguidance") is not None


def bounds() -> LLParserLimits:
    """Return what one grammar may cost: 20 ms to compile, and 10 ms for a mask, for which a whole batch waits."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000, step_lexer_fuel=100_000, step_max_items=20_000, verbose_errors=False
    )


class Grammars:
    """What all grammars of one model need: the bytes of its tokens."""

    def __init__(self, tokenizer: LLTokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary

    @classmethod
    def of_file(cls, tokenizer_json: str, vocabulary: int, eos_ids: Iterable[int]) -> Grammars:
        """Take the tokens from the text of a `tokenizer.json`: half a second for 50,000 of them."""
        from llguidance import LLTokenizer

        eos = [token_id for token_id in sorted(eos_ids) if token_id < vocabulary]
        return cls(LLTokenizer(tokenizer_json, n_vocab=vocabulary, eos_token=eos or None), vocabulary)

    @classmethod
    def of_bytes(cls, vocabulary: int, eos_id: int) -> Grammars:
        """Take each of the first 256 ids for a byte, and the others for markers without a text."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return cls(LLTokenizer(TokenizerWrapper(_Bytes(vocabulary, eos_id)), n_vocab=vocabulary), vocabulary)

    def matcher(self, grammar: str, generated: Sequence[int], stop_ids: Iterable[int]) -> Matcher:
        """Begin behind the tokens that an answer has already. Raises RequestRefusedError."""
        from llguidance import LLMatcher

        inner = LLMatcher(self._tokenizer, grammar, log_level=0, limits=bounds())
        if inner.is_error():
            raise RequestRefusedError(f"grammar: {in_short(inner.get_error())}")
        matcher = Matcher(inner, self._vocabulary, stop_ids, self._tokenizer.eos_tokens)
        for token_id in generated:
            matcher.take(token_id)
        return matcher


class Matcher:
    """Where one answer is in its grammar."""

    def __init__(self, inner: LLMatcher, vocabulary: int, stop_ids: Iterable[int], eos_ids: Iterable[int]) -> None:
        self._inner = inner
        self._stop_ids = {token_id for token_id in stop_ids if token_id < vocabulary}
        self._ends = _bits(self._stop_ids, vocabulary)
        # llguidance knows one kind of end, which it allows where the grammar is fulfilled. Ours are the request's.
        self._not_eos = ~_bits(eos_ids, vocabulary)
        self._bytes = -(-vocabulary // 32) * 4
        self.mask = b""
        """A bit for each token that may come next, in little-endian words of 32; none is set once it `is_over`."""
        self.is_over = False
        """Whether nothing may follow: the answer is whole."""
        self.error = ""
        """Why no token is allowed although the answer is not whole."""
        self._advance()

    def take(self, token_id: int) -> None:
        """Go on by a token that was drawn under `mask`, or elsewhere under one that was equal."""
        if self.is_over or self.error:
            return
        if token_id in self._stop_ids and self._inner.is_accepting():
            self.is_over, self.mask = True, bytes(self._bytes)
        elif self._inner.consume_token(token_id):
            self._advance()
        else:
            self._fail(f"token {token_id} is none that the grammar allows")

    def _advance(self) -> None:
        """Find out what may follow."""
        inner = self._inner
        may_end = inner.is_accepting()
        allowed = 0 if inner.is_stopped() else int.from_bytes(inner.compute_bitmask(), "little") & self._not_eos
        if inner.is_error():
            self._fail(in_short(inner.get_error()))
        elif not allowed and may_end:
            self.is_over, self.mask = True, bytes(self._bytes)
        elif not allowed:
            self._fail("no token of this model may follow")
        else:
            self.mask = (allowed | self._ends if may_end else allowed).to_bytes(self._bytes, "little")

    def _fail(self, words: str) -> None:
        self.error, self.mask = f"the grammar cannot be kept to: {words}", bytes(self._bytes)


def in_short(words: str) -> str:
    """Write what llguidance says on one line of bounded length."""
    return " ".join(words.replace("<non-verbose/>", "").split())[:_SHORT]


def _bits(ids: Iterable[int], vocabulary: int) -> int:
    bits = 0
    for token_id in ids:
        if token_id < vocabulary:
            bits |= 1 << token_id
    return bits


class _Bytes:
    """The vocabulary of `ByteTokenizer`, as llguidance asks for one."""

    bos_token_id: int | None = None

    def __init__(self, vocabulary: int, eos_id: int) -> None:
        self.eos_token_id = eos_id
        self.special_token_ids = list(range(256, vocabulary))
        self.tokens = [bytes([value]) for value in range(256)] + [b"<%d>" % token for token in self.special_token_ids]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def words_of(mask: bytes) -> list[int]:
    """Return a mask as signed words of 64 bits, the last filled up with zeros: what a device is sent."""
    return list(memoryview(mask.ljust(-(-len(mask) // 8) * 8, b"\0")).cast("q"))
