"""How much of a prompt a step of a CPU takes, so that those who are being answered hardly notice. Pure: times come in.

A constant would be wrong on every machine but one: what a piece costs depends on cores, types and models, and what it
may cost on how long a step is without it.
"""

# Theory of operation.
#
# On a CPU the tokens of prompts and those who run share one pass, so a piece lengthens the step, and the step is what
# everybody waits for between two tokens. The rule: a step with a piece takes at most twice as long as a plain one, one
# without, that has as many running. Half of the time goes to prompts then, and no answer falls below half its speed.
#
# Both sides are measured, never computed:
#
#     plain time   of steps without a piece, apart for each number of running sequences. Where prompts keep arriving
#                  there would be no such step, and nothing to compare with. So every sixteenth step leaves the prompt
#                  out, and so does the first one of a number of sequences: that costs a prompt 6 % at most.
#     cost         seconds for each token of a piece, beyond the plain time. It changes: small pieces cost more for each
#                  token (a product of few rows waits for the weights), and tokens far inside a prompt see more keys.
#                  So the next piece is as large as the cost of the last ones allows, which settles where size and cost
#                  fit each other. It believes a rise at once, but no more than twice of what was, and a fall only when
#                  most of the last five tell it: other processes make some steps long, and hardly any step short.
#
#     tile         a product computes some sixteen rows at once, and fewer take nearly as long: on one core with AVX-512
#                  four rows of a small model take 1.9 times as long as one, 16 take 2.2 times, 32 take 3.2 times. So
#                  the piece that fills the first tile is taken where a step with it takes at most two plain ones, as it
#                  usually does: a smaller one would save little of the step, and cost most of the prompt's speed. Where
#                  it does not, it is tried again at every 128th piece, since times change.
#
# A piece that is much smaller than it might have been, since the prompt was over, tells little of what a large one
# costs, and is not looked at. No piece is more than twice as large as the last one that was: where nothing is known, a
# step must not be long by a guess.
#
# Where nobody runs nobody waits for tokens, but a newcomer, a cancel and the agent wait for the step: there the goal is
# a time, and the cost that of the whole step.

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

MOST_TOKENS: Final = 512
"""Of a piece: larger products are no faster."""
_FIRST_TOKENS: Final = 16
_ALONE_S: Final = 0.5
"""Goal of a step in which nobody runs."""
_SHARE: Final = 0.6
"""Goal of what a piece adds to a step, in plain steps: less than one, since both times scatter."""
_PLAIN_EVERY: Final = 16
_TILE_EVERY: Final = 128
_TILE: Final = 16
"""Rows of numbers that a core computes at once: 512 bits of float32."""
_REMEMBERED: Final = 5


class _Cost:
    """What a token of a piece costs, by the last pieces, and so how large the next one may be."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._tried = _FIRST_TOKENS // 2
        self._allowed = _FIRST_TOKENS

    def tokens_for(self, seconds: float) -> int:
        """Return how many tokens so much time is enough for: one at least, or a prompt would never be done."""
        most = min(2 * self._tried, MOST_TOKENS)
        cost = self._cost()
        self._allowed = max(1, min(int(seconds / cost), most)) if cost > 0 else most
        return self._allowed

    def of(self, tokens: int) -> float:
        """Return the seconds that so many tokens usually take; 0 if nothing is known."""
        return tokens * statistics.median(self._recent) if self._recent else 0.0

    def learn(self, tokens: int, seconds: float, goal_s: float) -> None:
        """Take in what a piece has cost, if it was about as large as allowed, or too long as it was."""
        if 2 * tokens >= self._allowed or seconds > goal_s:
            cost = max(0.0, seconds) / tokens
            self._recent.append(min(cost, 2 * self._cost()) if any(self._recent) else cost)
            self._tried = tokens

    def _cost(self) -> float:
        return max(statistics.median(self._recent), self._recent[-1]) if self._recent else 0.0


class PromptPace:
    """The rule, and what it has measured. Its owner asks before each step, and tells after it how long it took."""

    def __init__(self) -> None:
        self._plain: dict[int, deque[float]] = {}
        """Number of running sequences: times of the last plain steps."""
        self._since_plain = 0
        self._pieces = 0
        self._alone = _Cost()
        self._beside = _Cost()

    def room(self, running: int) -> int:
        """Return how many tokens of prompts the next step may take beside so many; 0: it is to be a plain one."""
        if not running:
            return self._alone.tokens_for(_ALONE_S)
        if running not in self._plain or self._since_plain >= _PLAIN_EVERY - 1:
            return 0
        tokens, to_fill = self._beside.tokens_for(self._goal_s(running)), _TILE - running % _TILE
        if self._pieces % _TILE_EVERY == 0:
            return to_fill
        return max(tokens, to_fill) if self._beside.of(to_fill) <= self._plain_s(running) else tokens

    def learn(self, running: int, prompt_tokens: int, seconds: float) -> None:
        """Take in how long a step was."""
        if not prompt_tokens:
            self._plain.setdefault(running, deque(maxlen=_REMEMBERED)).append(seconds)
            self._since_plain = 0
        elif not running:
            self._alone.learn(prompt_tokens, seconds, _ALONE_S)
        else:
            self._since_plain += 1
            self._pieces += 1
            if running in self._plain:
                self._beside.learn(prompt_tokens, seconds - self._plain_s(running), self._goal_s(running))

    def _plain_s(self, running: int) -> float:
        return statistics.median(self._plain[running])

    def _goal_s(self, running: int) -> float:
        return _SHARE * self._plain_s(running)
