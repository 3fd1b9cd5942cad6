"""Every answer against the right one: what was lost, given twice, or wrong, and how long streams stood still.

Knows no socket and no clock: tokens come in with the time they came at. What is right is known before anybody is asked.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_ON_THEIR_WAY_S: Final = 0.5
"""Tokens that had left a victim before it was struck come in for a moment."""
_MOST_COMPLAINTS: Final = 20


@dataclass(slots=True)
class Watch:
    """One request: what it must be answered, and what came of it so far."""

    number: int
    right_ids: Sequence[int]
    right_text: str
    is_stream: bool
    asked_s: float
    ids: list[int] = field(default_factory=list[int])
    last_s: float | None = None
    is_wrong: bool = False
    is_doubled: bool = False


class Judge:
    """Keeps the score of a run. Times are seconds since its start."""

    def __init__(self) -> None:
        self.open: dict[int, Watch] = {}
        self.longest_gap_s = 0.0
        """Between two tokens of a stream that had begun."""
        self.gaps_s: list[float] = []
        """For each fault the longest pause that began with it, before the next one."""
        self._struck_s: list[float] = []
        self.requests = self.answered = self.lost = self.doubled = self.wrong = 0
        self.streams = self.tokens = 0
        self.errors: Counter[str] = Counter()
        self.complaints: list[str] = []

    def ask(self, right_ids: Sequence[int], right_text: str, *, is_stream: bool, now_s: float) -> Watch:
        """Note a request that is about to be sent."""
        self.requests += 1
        self.streams += is_stream
        watch = Watch(self.requests, right_ids, right_text, is_stream, now_s)
        self.open[watch.number] = watch
        return watch

    def units(self, watch: Watch, index: int, ids: Sequence[int], now_s: float) -> None:
        """Take the tokens of a chunk, which says that so many came before it."""
        if watch.last_s is not None:
            self._pause(watch.last_s, now_s)
        watch.last_s = now_s
        self.tokens += len(ids)
        have = len(watch.ids)
        if index < have:
            watch.is_doubled = True
            self._complain(watch, f"token {index} came a second time, after {have}")
        elif index > have:
            self._spoil(watch, f"token {index} came where {have} was due")
        elif list(ids) != list(watch.right_ids[have : have + len(ids)]):
            self._spoil(watch, f"tokens {have} .. are {list(ids)}, not {list(watch.right_ids[have : have + len(ids)])}")
        watch.ids += ids

    def end(self, watch: Watch, ids: Sequence[int], text: str) -> None:
        """Take a result."""
        del self.open[watch.number]
        self.answered += 1
        if list(ids) != list(watch.right_ids):
            self._spoil(watch, f"{len(ids)} tokens at the end, not the {len(watch.right_ids)} that are right")
        elif text != watch.right_text:
            self._spoil(watch, f"the text is {text[-40:]!r} at its end, not {watch.right_text[-40:]!r}")
        self.doubled += watch.is_doubled
        self.wrong += watch.is_wrong

    def fail(self, watch: Watch, kind: str, text: str) -> None:
        """Take an error: nothing that happens here may cost an answer."""
        del self.open[watch.number]
        self.lost += 1
        self.errors[kind] += 1
        self._complain(watch, f"{kind}: {text}")

    def give_up(self, now_s: float) -> None:
        """Count what is still open as lost: its time is over."""
        for watch in list(self.open.values()):
            self.fail(watch, "no end", f"{len(watch.ids)} tokens came; open for {now_s - watch.asked_s:.1f} s")

    def strike(self, at_s: float) -> None:
        """Note that something was broken now."""
        self._struck_s.append(at_s)
        self.gaps_s.append(0.0)

    def _pause(self, since_s: float, until_s: float) -> None:
        """Put a pause down to the latest fault before it began; one that ended before any fault is nobody's."""
        length_s = until_s - since_s
        self.longest_gap_s = max(self.longest_gap_s, length_s)
        number = bisect.bisect_right(self._struck_s, since_s + _ON_THEIR_WAY_S) - 1
        if number >= 0 and until_s >= self._struck_s[number]:
            self.gaps_s[number] = max(self.gaps_s[number], length_s)

    def _spoil(self, watch: Watch, what: str) -> None:
        watch.is_wrong = True
        self._complain(watch, what)

    def _complain(self, watch: Watch, what: str) -> None:
        if len(self.complaints) < _MOST_COMPLAINTS:
            self.complaints.append(f"request {watch.number}: {what}")
