"""How much of a prompt a step of a CPU takes, so that those who are being answered hardly notice. Pure: times come in.

A constant would be wrong on every machine but one: what a piece costs depends on cores, types and models, and what it
may cost on how long a step is without it.
"""

# Theory of operation.
#
# On a CPU the tokens of prompts and those who run share one pass, so a piece lengthens the step, and the step is what
# everybody waits for between two tokens. Two rules, the second counts more:
#
#     gap          a step with a piece takes at most twice as long as a plain one, one without, that has as many
#                  running. Where nobody runs nobody waits for tokens, but a newcomer, a cancel and the agent wait for
#                  the step: there it is half a second.
#     share        a piece has at least 32 tokens, and 64 where nobody runs, whatever it takes. A pass has a price
#                  however few tokens are in it (it reads all weights), so there are machines on which the first rule
#                  cannot be kept, and pieces that tried would end at one token. A step with fewer tokens takes no
#                  longer than one with more, so a prompt is read at a quarter of the speed that pieces of 128 tokens
#                  would have, alone at half of it, on any machine: that needs no measuring, and no noise touches it.
#
# What the first rule allows is measured, never computed:
#
#     plain time   of steps without a piece, apart for each number of running sequences. Where prompts keep arriving
#                  there would be no such step, and nothing to compare with. So of each number every sixteenth step
#                  leaves the prompt out, and so does the first one: that costs a prompt 6 % at most.
#     cost         seconds for each token of a piece, beyond the plain time. It changes: small pieces cost more for each
#                  token, and tokens far inside a prompt see more keys. So the next piece is as large as the cost of the
#                  last ones allows, which settles where size and cost fit each other. It is rounded up, so that it
#                  always tries a little more, and comes back after steps that others made long. It believes a rise at
#                  once, but no more than twice of what was, and a fall only when most of the last five tell it: other
#                  processes make some steps long, and hardly any step short.
#
# A piece that is much smaller than it might have been, since the prompt was over, tells little of what a large one
# costs, and is not looked at. No piece is more than twice as large as the last one that was: where nothing is known, a
# step must not be long by a guess.

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Final

MOST_TOKENS: Final = 512
"""Of a piece: larger products are no faster."""
LEAST_TOKENS: Final = 32
"""Of a piece: a quarter of 128, from where on larger products gain little on the CPUs that were measured."""
LEAST_ALONE: Final = 64
_ALONE_S: Final = 0.5
"""Goal of a step in which nobody runs."""
_SHARE: Final = 0.6
"""Goal of what a piece adds to a step, in plain steps: less than one, since both times scatter."""
_PLAIN_EVERY: Final = 16
_REMEMBERED: Final = 5
_NO_COST: Final = 1e-9


class _Cost:
    """What a token of a piece costs, by the last pieces, and so how large the next one may be."""

    def __init__(self, least: int) -> None:
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._least = self._tried = self._allowed = least

    def tokens_for(self, seconds: float) -> int:
        """Return how many tokens so much time is enough for, or the least."""
        in_time = math.ceil(seconds / max(self._cost(), _NO_COST)) if self._recent else self._least
        self._allowed = max(self._least, min(in_time, 2 * self._tried, MOST_TOKENS))
        return self._allowed

    def learn(self, tokens: int, seconds: float, goal_s: float) -> None:
        """Take in what a piece has cost, if it was about as large as allowed, or too long as it was."""
        if 2 * tokens >= self._allowed or seconds > goal_s:
            cost = max(0.0, seconds) / tokens
            self._recent.append(min(cost, 2 * self._cost()) if any(self._recent) else cost)
            self._tried = tokens

    def _cost(self) -> float:
        return max(statistics.median(self._recent), self._recent[-1])


class PromptPace:
    """The rule, and what it has measured.

    Its owner asks before each step that a prompt waits for, and tells after every step how long it took.
    """

    def __init__(self) -> None:
        self._plain: dict[int, deque[float]] = {}
        """Number of running sequences: times of the last plain steps."""
        self._since_plain: dict[int, int] = {}
        """The same number: its steps with a piece since then."""
        self._alone = _Cost(LEAST_ALONE)
        self._beside = _Cost(LEAST_TOKENS)

    def room(self, running: int) -> int:
        """Return how many tokens of prompts the next step may take beside so many; 0: it is to be a plain one."""
        if not running:
            return self._alone.tokens_for(_ALONE_S)
        if self._since_plain.get(running, _PLAIN_EVERY) >= _PLAIN_EVERY - 1:
            return 0
        return self._beside.tokens_for(self._goal_s(running))

    def learn(self, running: int, prompt_tokens: int, seconds: float) -> None:
        """Take in how long a step was."""
        if not prompt_tokens:
            self._plain.setdefault(running, deque(maxlen=_REMEMBERED)).append(seconds)
            self._since_plain[running] = 0
        elif not running:
            self._alone.learn(prompt_tokens, seconds, _ALONE_S)
        elif running in self._plain:
            self._since_plain[running] += 1
            self._beside.learn(prompt_tokens, seconds - self._plain_s(running), self._goal_s(running))

    def _plain_s(self, running: int) -> float:
        return statistics.median(self._plain[running])

    def _goal_s(self, running: int) -> float:
        return _SHARE * self._plain_s(running)
