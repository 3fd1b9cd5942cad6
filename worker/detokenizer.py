"""Turn token ids into text piece by piece, and end it at stop strings. Knows no template, no engine and no socket.

Every piece is a function of the ids before it and of nothing else: not of how an engine grouped them into steps. That
is what lets a stream go on at another node: a fresh `TextStream` steps through the delivered ids, its pieces are
dropped, and the next piece is the one the lost node would have sent. (Handing the delivered ids to a detokenizer as its
context is not the same: inside a multi-byte character it repeats text.)
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

_REPLACEMENT: Final = "\ufffd"
_WINDOW_IDS: Final = 64
"""A text that stays half a character for so many ids is garbage, and is passed on as such: no quadratic growth."""


class Detokenizer(Protocol):
    """Text of one stream of ids; half a character is held back."""

    def step(self, token_id: int) -> str:
        """Return the text that this id completes (often all of its own, sometimes none)."""
        ...

    def flush(self) -> str:
        """Return what is held at the end: the replacement characters that one decode of all ids would show."""
        ...


class ByteDetokenizer:
    """For vocabularies whose tokens are bytes (byte-level BPE, and the byte tokenizer of the mock).

    Exact for every sequence of ids: what one decode of all of them gives, cut anywhere.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._held = b""

    def step(self, token_id: int) -> str:
        """Decode one id; bytes that may still become a character wait."""
        data = self._held + self._token_bytes(token_id)
        text, read = codecs.utf_8_decode(data, "replace", False)
        self._held = data[read:]
        return text

    def flush(self) -> str:
        """Give up waiting."""
        data, self._held = self._held, b""
        return codecs.utf_8_decode(data, "replace", True)[0]


class WindowDetokenizer:
    """For every other vocabulary: decode a short window again and take what is new in it.

    Decoders such as SentencePiece's look at neighbours (a leading space, a run of byte tokens), so the window begins
    one step before the text already given. Exact for valid text; a run of invalid bytes may show as other replacement
    characters than one decode would show.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._read = 0
        """How many of the window's ids have given their text already."""

    def step(self, token_id: int) -> str:
        """Decode the window with and without the new id; half a character shows as a replacement and waits."""
        self._ids.append(token_id)
        before, now = self._decode(self._ids[: self._read]), self._decode(self._ids)
        is_incomplete = now.endswith(_REPLACEMENT) and len(self._ids) - self._read < _WINDOW_IDS
        if len(now) <= len(before) or is_incomplete:
            self._skip_silence(before, now)
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return now[len(before) :]

    def flush(self) -> str:
        """Return the text of the ids that waited."""
        text = self._decode(self._ids)[len(self._decode(self._ids[: self._read])) :]
        self._ids, self._read = [], 0
        return text

    def _skip_silence(self, before: str, now: str) -> None:
        """Forget the newest of many special tokens, which have no text: a long run of them stays cheap."""
        if now == before and len(self._ids) - self._read >= _WINDOW_IDS:
            del self._ids[self._read :]


class StopMatcher:
    """Finds stop strings in text that comes in pieces; what may be the beginning of one is held back.

    One Knuth-Morris-Pratt automaton per stop string: each character costs the same however the text is cut, and the
    result does not depend on the cut. The match that ends first wins; of two that end together, the longer.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._fallback = [_failure_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Return the text that cannot belong to a stop string any more; sets `found` when one is complete."""
        if not self._stops or self.found is not None:
            return "" if self.found is not None else text
        for index, char in enumerate(text):
            stop = self._advance(char)
            if stop is not None:
                seen = self._held + text[: index + 1]
                self.found, self._held = stop, ""
                return seen[: len(seen) - len(stop)]
        seen = self._held + text
        keep = max(self._matched)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep]

    def flush(self) -> str:
        """Return what was held back: the text is over and no stop string came of it."""
        text, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return text

    def _advance(self, char: str) -> str | None:
        """Feed one character to every automaton; return the longest stop string that it completes."""
        complete: str | None = None
        for index, stop in enumerate(self._stops):
            length, fallback = self._matched[index], self._fallback[index]
            while length and stop[length] != char:
                length = fallback[length - 1]
            length += stop[length] == char
            if length == len(stop):
                if complete is None or len(stop) > len(complete):
                    complete = stop
                length = fallback[length - 1]
            self._matched[index] = length
        return complete


_NO_STOPS: Final = StopMatcher(())
"""For all texts that nothing stops: it holds nothing."""


def _failure_table(stop: str) -> list[int]:
    """For each prefix of the stop string: the length of its longest proper suffix that is a prefix too."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = table[length - 1]
        length += stop[index] == stop[length]
        table[index] = length
    return table


class TextStream:
    """The text of one generation: one piece per id, and a tail at the end. A stop string ends it early."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = (), *, min_tokens: int = 0) -> None:
        self._detokenizer = detokenizer
        self._stops = tuple(stops)
        self._matcher = StopMatcher(stops) if stops else _NO_STOPS
        self._deaf_steps = min_tokens if stops else 0
        """Stop strings do not count before `min_tokens`."""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found; the text ends before it and no further id may be stepped."""
        return self._matcher.found is not None

    @property
    def stop_index(self) -> int | None:
        """Which of the stop strings was found."""
        return None if self._matcher.found is None else self._stops.index(self._matcher.found)

    def step(self, token_id: int) -> str:
        """Return the piece of one more id."""
        text = self._detokenizer.step(token_id)
        if self._deaf_steps > 0:
            self._deaf_steps -= 1
            return text
        return self._matcher.feed(text) if text and self._stops else text

    def finish(self) -> str:
        """Return the tail: everything held back, unless a stop string cut it off."""
        if self.is_stopped:
            return ""
        return self._matcher.feed(self._detokenizer.flush()) + self._matcher.flush()


class BegunStream(TextStream):
    """The text of an answer whose first words the prompt had: they stand in its first piece, and no stop sees them."""

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str] = (), *, min_tokens: int = 0, begun: str = ""
    ) -> None:
        super().__init__(detokenizer, stops, min_tokens=min_tokens)
        self._begun = begun

    def step(self, token_id: int) -> str:
        """Return the piece of one more id."""
        begun, self._begun = self._begun, ""
        return begun + super().step(token_id)
