"""From texts to rows of tokens, as the model's own tokenizer cuts them: single texts, and pairs of a query and a text.

What is longer than the model can read is an error, or cut if its caller said so. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from ....protocol.errors import too_long
from ...tokenizer import read_tokenizer
from ..base import RequestRefusedError, Row

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_CHARS_PER_TOKEN: Final = 32
"""Of a text with more for each token that the model can read the beginning is looked at first: to cut 60 MB into
tokens takes a minute, and holds everybody up."""


class InputTooLongError(Exception):
    """A text has more tokens than the model can read; the words are for its caller."""


class TextRows:
    """Makes rows of texts. `context`: tokens of a row at most; `prompt` is put before each text that is no pair."""

    def __init__(
        self, directory: Path, *, context: int, vocabulary: int, prompt: str = "", is_lowered: bool = False
    ) -> None:
        self._tokenizer: Tokenizer = read_tokenizer(directory)[0]
        self._tokenizer.no_padding()
        self._context = context
        self._vocabulary = vocabulary
        self._prompt = prompt
        self._is_lowered = is_lowered
        self._before, self._behind = self._around()

    def of_texts(self, texts: Sequence[str], what: str, *, cut_to: int | None) -> list[Row]:
        """Make a row of each text. Raises InputTooLongError, unless cut, and RequestRefusedError; both name `what`."""
        most = self._most(cut_to)
        ready = [self._shortened(self._prompt + (text.lower() if self._is_lowered else text), most) for text in texts]
        rows = [Row(encoding.ids) for encoding in self._encode(ready, most, is_cut=cut_to is not None)]
        self._check(rows, what)
        return rows

    def of_pairs(self, first: str, seconds: Sequence[str], what: str, *, is_cut: bool) -> list[Row]:
        """Make a row of `first` with each of the others, which alone are cut. Raises as `of_texts` does."""
        first, most = self._shortened(first, self._context), self._context * _CHARS_PER_TOKEN
        if len(first) > most:  # it is cut into tokens once for each of the others
            words = f"query: it has {len(first):,} characters, which are few tokens all the same; {most:,} are read"
            raise RequestRefusedError(f"{words} at most: shorten it")
        tokens = len(self._encode([first], self._context, is_cut=False)[0].ids)
        added = [self._tokenizer.num_special_tokens_to_add(is_pair) for is_pair in (False, True)]
        if tokens - added[0] + added[1] >= self._context:
            raise InputTooLongError(too_long("query", tokens, self._context))
        pairs = [(first, self._shortened(text, self._context)) for text in seconds]
        encodings = self._encode(pairs, self._context, is_cut=is_cut)
        rows = [Row(encoding.ids, encoding.type_ids) for encoding in encodings]
        self._check(rows, what)
        return rows

    def of_ids(self, token_ids: list[int], what: str, *, cut_to: int | None) -> Row:
        """Make a row of tokens as they are: whoever sends them has added what the model needs around a text.

        That tells them from those of another tokenizer, of which the vectors would be of another text.
        """
        before, behind, most = self._before, self._behind, self._most(cut_to)
        is_cut = cut_to is not None and len(token_ids) > most
        row = Row([*token_ids[: most - len(behind)], *behind] if is_cut else token_ids)
        self._check([row], what)
        if token_ids[: len(before)] != before or token_ids[len(token_ids) - len(behind) :] != behind:
            text = f"{what}: tokens of this model's own tokenizer begin with {before} and end with {behind}"
            raise RequestRefusedError(f"{text}; those of another one, as of tiktoken, mean something else: send texts")
        return row

    def _around(self) -> tuple[list[int], list[int]]:
        """Return what the tokenizer puts before a text, and what behind it."""
        encoding = self._tokenizer.encode("a")
        is_added = encoding.special_tokens_mask
        if 0 not in is_added:
            return [], []
        first, last = is_added.index(0), is_added[::-1].index(0)
        return encoding.ids[:first], encoding.ids[len(encoding.ids) - last :]

    def _most(self, cut_to: int | None) -> int:
        most = self._context if cut_to is None else min(cut_to, self._context)
        least = self._tokenizer.num_special_tokens_to_add(is_pair=False) + 1
        if most < least:
            raise RequestRefusedError(f"truncate_to: at least {least} tokens are needed, the model adds {least - 1}")
        return most

    def _shortened(self, text: str, most: int) -> str:
        """Leave out the end of a text whose beginning is too long already."""
        if len(text) <= most * _CHARS_PER_TOKEN:
            return text
        begin = text[: most * _CHARS_PER_TOKEN]
        self._tokenizer.no_truncation()
        return begin if len(self._tokenizer.encode(begin, add_special_tokens=False)) > most else text

    def _encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], most: int, *, is_cut: bool) -> list[Encoding]:
        if not texts:
            return []
        if is_cut:
            tokenizer = cast("Any", self._tokenizer)  # its types do not say what keywords are
            tokenizer.enable_truncation(most, strategy="only_second" if isinstance(texts[0], tuple) else "only_first")
        else:
            self._tokenizer.no_truncation()
        return self._tokenizer.encode_batch_fast(list(texts))

    def _check(self, rows: list[Row], what: str) -> None:
        for index, row in enumerate(rows):
            name = what if len(rows) == 1 else f"{what}[{index}]"
            if not row.token_ids:
                raise RequestRefusedError(f"{name}: it is empty: 0 tokens")
            if len(row.token_ids) > self._context:
                raise InputTooLongError(too_long(name, len(row.token_ids), self._context))
            if max(row.token_ids) >= self._vocabulary:
                raise RequestRefusedError(f"{name}: the model has no token {max(row.token_ids)}")
