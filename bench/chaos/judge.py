"""Compares every answer with the right one: what was lost, came twice, or is wrong, and how long streams stood still.

Knows no socket and no clock: tokens come in with the time they came at. What is right is known before anybody is asked.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_ON_THEIR_WAY_S: Final = 0.5
"""Tokens that had left a victim before it was hit come in for a moment."""
_MOST_COMPLAINTS: Final = 20


@dataclass(slots=True)
class JudgedRequest:
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
        self.open: dict[int, JudgedRequest] = {}
        self.longest_gap_s = 0.0
        """Between two tokens of a stream that had begun."""
        self.gaps_s: list[float] = []
        """For each fault the longest pause that began with it, before the next one."""
        self._faults_s: list[float] = []
        self.requests = self.answered = self.lost = self.doubled = self.wrong = 0
        self.streams = self.tokens = 0
        self.errors: Counter[str] = Counter()
        self.complaints: list[str] = []

    def ask(self, right_ids: Sequence[int], right_text: str, *, is_stream: bool, now_s: float) -> JudgedRequest:
        """Note a request that is about to be sent."""
        self.requests += 1
        self.streams += is_stream
        request = JudgedRequest(self.requests, right_ids, right_text, is_stream, now_s)
        self.open[request.number] = request
        return request

    def units(self, request: JudgedRequest, index: int, ids: Sequence[int], now_s: float) -> None:
        """Take the tokens of a chunk, which says that so many came before it."""
        if request.last_s is not None:
            self._note_pause(request.last_s, now_s)
        request.last_s = now_s
        self.tokens += len(ids)
        have = len(request.ids)
        if index < have:
            request.is_doubled = True
            self._complain(request, f"token {index} came a second time, after {have}")
        elif index > have:
            self._mark_wrong(request, f"token {index} came where {have} was due")
        elif list(ids) != list(request.right_ids[have : have + len(ids)]):
            self._mark_wrong(
                request, f"tokens {have} .. are {list(ids)}, not {list(request.right_ids[have : have + len(ids)])}"
            )
        request.ids += ids

    def end(self, request: JudgedRequest, ids: Sequence[int], text: str) -> None:
        """Take a result."""
        del self.open[request.number]
        self.answered += 1
        if list(ids) != list(request.right_ids):
            self._mark_wrong(request, f"{len(ids)} tokens at the end, not the {len(request.right_ids)} that are right")
        elif text != request.right_text:
            self._mark_wrong(request, f"the text is {text[-40:]!r} at its end, not {request.right_text[-40:]!r}")
        self.doubled += request.is_doubled
        self.wrong += request.is_wrong

    def fail(self, request: JudgedRequest, kind: str, text: str) -> None:
        """Take an error: nothing that happens here may cost an answer."""
        del self.open[request.number]
        self.lost += 1
        self.errors[kind] += 1
        self._complain(request, f"{kind}: {text}")

    def give_up(self, now_s: float) -> None:
        """Count what is still open as lost: its time is over."""
        for request in list(self.open.values()):
            self.fail(request, "no end", f"{len(request.ids)} tokens came; open for {now_s - request.asked_s:.1f} s")

    def note_fault(self, at_s: float) -> None:
        """Note that a fault was injected now."""
        self._faults_s.append(at_s)
        self.gaps_s.append(0.0)

    def _note_pause(self, since_s: float, until_s: float) -> None:
        """Put a pause down to the latest fault before it began; one that ended before any fault is nobody's."""
        length_s = until_s - since_s
        self.longest_gap_s = max(self.longest_gap_s, length_s)
        number = bisect.bisect_right(self._faults_s, since_s + _ON_THEIR_WAY_S) - 1
        if number >= 0 and until_s >= self._faults_s[number]:
            self.gaps_s[number] = max(self.gaps_s[number], length_s)

    def _mark_wrong(self, request: JudgedRequest, what: str) -> None:
        request.is_wrong = True
        self._complain(request, what)

    def _complain(self, request: JudgedRequest, what: str) -> None:
        if len(self.complaints) < _MOST_COMPLAINTS:
            self.complaints.append(f"request {request.number}: {what}")
