"""Every answer against the right one: what was lost, given twice, or wrong, and how long streams stood still.

Knows no socket and no clock: tokens come in with the time they came at. What is right is known before anybody is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_ON_THEIR_WAY_S: Final = 0.5
"""Tokens that had left a victim before it was struck come in for a moment."""
LONG_GAP_S: Final = 0.25
"""Shorter pauses between two tokens are the pace of a step, and not worth remembering."""
_MOST_COMPLAINTS: Final = 20


@dataclass(frozen=True, slots=True)
class Gap:
    """A stream that had begun, and stood still from `since_s` to `until_s`."""

    since_s: float
    until_s: float

    @property
    def length_s(self) -> float:
        """How long."""
        return self.until_s - self.since_s


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
        self.gaps: list[Gap] = []
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
        if watch.last_s is not None and now_s - watch.last_s > LONG_GAP_S:
            self.gaps.append(Gap(watch.last_s, now_s))
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

    def longest_gap_s(self, at_s: float | None = None) -> float:
        """Return the longest pause of a stream; with a time, of those that began to stand still then."""
        gaps = self.gaps
        if at_s is not None:
            gaps = [gap for gap in gaps if gap.since_s - _ON_THEIR_WAY_S <= at_s <= gap.until_s]
        return max((gap.length_s for gap in gaps), default=0.0)

    def _spoil(self, watch: Watch, what: str) -> None:
        watch.is_wrong = True
        self._complain(watch, what)

    def _complain(self, watch: Watch, what: str) -> None:
        if len(self.complaints) < _MOST_COMPLAINTS:
            self.complaints.append(f"request {watch.number}: {what}")
