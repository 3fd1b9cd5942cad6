"""Which tokens may come next in an answer that keeps to a grammar: a JSON schema, a regular expression, or Lark.

llguidance (https://github.com/guidance-ai/llguidance) knows the grammars; `worker/grammar_check.py` has looked at them
before they come here. Where an answer is after some tokens depends on nothing but those tokens, so one that goes on
elsewhere gets the very masks that it would have got here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from .base import RequestRefusedError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

_SHORT: Final = 300
_MOST_IN_ROW: Final = 5000
"""Ways to go on at one place: four for each property that may be left out, of which an object has 1000 at most."""
_TOO_MANY: Final = "items; max is"
"""Stands in what llguidance says where there are more."""
_MOST_S: Final = 1.0
"""Processor time that one grammar may take of the batch it runs in, beyond `_TOKEN_S` for each token."""
_TOKEN_S: Final = 0.005
"""Fifty times what a usual one takes. A stranger's that is always so dear ends soon, and usual ones never."""


def is_installed() -> bool:
    """Whether there is llguidance."""
    return find_spec("llguidance") is not None


def bounds() -> LLParserLimits:
    """Return what one grammar may cost: 20 ms to compile, and 20 ms for a mask, for which a whole batch waits."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_items_in_row=_MOST_IN_ROW,
        verbose_errors=False,
    )


class Grammars:
    """What all grammars of one model need: the bytes of its tokens."""

    def __init__(
        self, tokens: Sequence[bytes], names: Mapping[int, str] | None = None, *, clock: Callable[[], float]
    ) -> None:
        """`tokens`: what each id says in a text; none for markers, which only a grammar that `names` them can ask for.

        `clock`: the processor time of this thread in seconds, by which a grammar is bounded that costs too much.

        llguidance reads files of tokenizers too, but not all kinds, and no vocabulary with holes or with more words
        than the model has rows. What a token says in our texts is what counts here anyway.
        """
        from llguidance import LLTokenizer, TokenizerWrapper

        self._vocabulary = len(tokens)
        self._clock = clock
        # Duplicates: llguidance allows the last one, which is a word and not a single byte in all that is known.
        known = _Tokens(tokens, names or {})
        self._tokenizer = LLTokenizer(TokenizerWrapper(known), n_vocab=self._vocabulary + 1)
        known.encode = self._tokenizer.greedy_tokenize

    @classmethod
    def of_bytes(cls, vocabulary: int, *, clock: Callable[[], float]) -> Grammars:
        """Take each of the first 256 ids for a byte, and the others for markers."""
        return cls([*(bytes([value]) for value in range(256)), *[b""] * (vocabulary - 256)], clock=clock)

    def matcher(self, grammar: str, generated: Sequence[int], stop_ids: Iterable[int]) -> Matcher:
        """Begin behind the tokens that an answer has already. Raises RequestRefusedError."""
        from llguidance import LLMatcher

        inner = LLMatcher(self._tokenizer, grammar, log_level=0, limits=bounds())
        if inner.is_error():
            raise RequestRefusedError(f"grammar: {in_short(inner.get_error())}")
        matcher = Matcher(inner, self._vocabulary, stop_ids, generated, clock=self._clock)
        if matcher.error and not generated:
            raise RequestRefusedError(f"grammar: {matcher.error}")
        return matcher


class Matcher:
    """Where one answer is in its grammar."""

    def __init__(
        self,
        inner: LLMatcher,
        vocabulary: int,
        stop_ids: Iterable[int],
        generated: Sequence[int] = (),
        *,
        clock: Callable[[], float],
    ) -> None:
        self._inner = inner
        self._clock = clock
        self._vocabulary = vocabulary
        self._stop_ids = {token_id for token_id in stop_ids if token_id < vocabulary}
        self._bytes = -(-vocabulary // 32) * 4
        self._spent_s = 0.0
        self.mask = b""
        """A bit for each token that may come next, in little-endian words of 32; none is set once it `is_over`."""
        self.is_over = False
        """Whether nothing may follow: the answer is whole."""
        self.error = ""
        """Why no token is allowed although the answer is not whole."""
        for token_id in generated:
            self._consume(token_id)
        self._advance()

    def take(self, token_id: int) -> None:
        """Go on by a token that was drawn under `mask`."""
        began = self._clock()
        self._consume(token_id)
        self._advance()
        self._spent_s += self._clock() - began
        if self._spent_s > _MOST_S and not self.is_over:
            self._fail("it takes too much of the time of the whole batch; say it with fewer parts and shorter texts")

    def _consume(self, token_id: int) -> None:
        if self.is_over or self.error:
            return
        if token_id in self._stop_ids and self._inner.is_accepting():
            self._end()
        elif not self._inner.consume_token(token_id):
            why = in_short(self._inner.get_error())
            self._fail(f"token {token_id} is none that the grammar allows{': ' if why else ''}{why}")
        self._spent_s = max(0.0, self._spent_s - _TOKEN_S)

    def _advance(self) -> None:
        """Find out what may follow."""
        if self.is_over or self.error:
            return
        inner = self._inner
        may_end = inner.is_accepting()
        mask = bytearray(self._bytes if inner.is_stopped() else inner.compute_bitmask())[: self._bytes]
        # The end that llguidance knows is none of the model's. Those of the request end the answer where the grammar is
        # fulfilled, and nowhere else: an id that ends it may have a text, and would cut it anywhere.
        for token_id in (*self._stop_ids, self._vocabulary):
            if token_id < 8 * self._bytes:
                mask[token_id >> 3] &= ~(1 << (token_id & 7))
        has_next = mask.count(0) < len(mask)
        if inner.is_error():
            self._fail(in_short(inner.get_error()))
        elif may_end and not has_next:
            self._end()
        elif not has_next:
            self._fail("no token of this model may follow")
        else:
            for token_id in self._stop_ids if may_end else ():
                mask[token_id >> 3] |= 1 << (token_id & 7)
            self.mask = bytes(mask)

    def _end(self) -> None:
        self.is_over, self.mask = True, bytes(self._bytes)

    def _fail(self, words: str) -> None:
        self.error, self.mask = f"it cannot be kept to: {words}", bytes(self._bytes)


def in_short(words: str) -> str:
    """Write what llguidance says on one line of bounded length."""
    if _TOO_MANY in words:
        return f"{_MOST_IN_ROW} ways to go on at one place are too many; let fewer properties be left out"
    return " ".join(words.replace("<non-verbose/>", "").split())[:_SHORT]


class _Tokens:
    """A vocabulary as llguidance asks for one, with one token more: the end that it insists on."""

    bos_token_id: int | None = None

    def __init__(self, tokens: Sequence[bytes], names: Mapping[int, str]) -> None:
        self.encode: Callable[[str], list[int]] | None = None
        """Spells by the longest tokens; set once these are known there."""
        self.eos_token_id = len(tokens)
        self.special_token_ids = [*(token_id for token_id, said in enumerate(tokens) if not said), len(tokens)]
        self.tokens = [*tokens, b""]
        for token_id in self.special_token_ids:
            self.tokens[token_id] = names.get(token_id, f"<{token_id}>").encode()

    def __call__(self, text: str) -> list[int]:
        """Spell a text that a grammar forces. Raises at the one call before it can: whether bytes are taken, too."""
        assert self.encode is not None
        return self.encode(text)


def words_of(masks: Iterable[bytes]) -> memoryview:
    """Return masks as signed words of 64 bits, the last of each filled up with zeros: what a device is sent."""
    words = bytearray(b"".join(mask.ljust(-(-len(mask) // 8) * 8, b"\0") for mask in masks))
    return memoryview(words).cast("q")
